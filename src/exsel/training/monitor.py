"""What watches a run: its clock, its record of every step, its validation, its progress display, its interruption."""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from exsel.errors import ExselError, first_line
from exsel.evaluation import evaluate_loss
from exsel.files import write_text
from exsel.training.output_folder import METRICS, last_good
from exsel.training.settings import Settings
from exsel.training.trainer import step_losses, stop_if_not_finite

# The speed on display is the median over so many steps.
_SPEED_STEPS = 50


class Progress(Protocol):
    """Where a run shows what it does."""

    def start(self, name: str, steps: int, done: int) -> None:
        """A run begins, ``done`` of its steps already taken."""

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        """Steps up to ``step`` are taken; the losses are the latest."""

    def note(self, text: str) -> None:
        """Something to know."""

    def finish(self) -> None:
        """The run is over, well or not."""


@dataclass(kw_only=True)
class Record:
    """The record of a run, one line of ``metrics.jsonl`` a step; ``seconds`` is training time alone."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    _unwritten: int = 0

    @classmethod
    def begin(cls, path: Path, checkpoint: Path | None) -> Record:
        """The record of a run that begins, or goes on from a checkpoint, which holds the record up to its step.

        What lies at ``path`` is replaced: a killed run may have written more, or half a line.
        """
        record = cls(path=path)
        if checkpoint is not None:
            text = (checkpoint / METRICS).read_text(encoding="utf-8")
            record.lines = [json.loads(line) for line in text.splitlines()]
        record.save(path)
        return record

    def save(self, path: Path) -> None:
        """Write all of it into a file."""
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, line: dict[str, Any]) -> None:
        """Add a step; it is on disk after the next :meth:`flush`."""
        self.lines.append(line)
        self._unwritten += 1

    def flush(self) -> None:
        """Write what was added.

        Raises:
            ExselError: a full disk, for example.
        """
        if not self._unwritten:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in self.lines[-self._unwritten :]))
        except OSError as error:
            raise ExselError(
                f"{self.path} could not be written ({first_line(error)}); {last_good(self.path.parent)}. "
                "Mend that, then go on with --resume"
            ) from error
        self._unwritten = 0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    def step_seconds(self) -> list[float]:
        """What each step took."""
        times = [0.0, *(line["seconds"] for line in self.lines)]
        return [later - earlier for earlier, later in pairwise(times)]


class Interruption:
    """Whether Ctrl-C or SIGTERM asked the run to stop; a second Ctrl-C stops at once.

    The handler only notes the signal: it may have come in the middle of a write to standard output, which refuses
    another one there.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take the two signals while the block runs."""

        def handle(number: int, _frame: Any) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Monitor(TrainerCallback):
    """See the module's description. Training time runs from step to step, without evaluation and saving."""

    def __init__(
        self,
        *,
        settings: Settings,
        folder: Path,
        validation: Any,
        losses: list[Tensor],
        record: Record,
        progress: Progress,
        interruption: Interruption,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.validation = validation
        self.losses = losses
        self.record = record
        self.progress = progress
        self.interruption = interruption
        self.device = torch.device(settings.device)
        # Reading the losses waits for the device: on a GPU once in several steps.
        self.window = 1 if self.device.type == "cpu" else 10
        self.evaluation_steps = set(settings.evaluation_steps())
        self.peak_memory = 0
        self.has_begun = False
        #: Where the validation loss goes besides: the trainer's loggers, once there is a trainer.
        self.log: Callable[[dict[str, float]], None] | None = None
        self._learning_rates: list[float] = []
        self._mark = 0.0
        self._validation_loss: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._measure_memory()
        self._mark = time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the learning rate that the step is taken with."""
        self.has_begun = True
        self._learning_rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Put the steps since the last reading on record; evaluate where that is due; stop where that was asked."""
        step = state.global_step
        is_due = step in self.evaluation_steps
        if self.interruption.signal is not None:
            self.progress.note(f"stopping after step {step}, and saving a checkpoint …")
            control.should_save = control.should_training_stop = True
        if is_due or control.should_save or step % self.window == 0 or step == self.settings.steps:
            self._read(step)
            if is_due:
                self._evaluate(kwargs["model"])
            self.record.flush()
            line = self.record.lines[-1]
            speed = self.settings.tokens_per_step / statistics.median(self.record.step_seconds()[-_SPEED_STEPS:])
            self.progress.advance(step, line["loss"], self._validation_loss, speed)
            self._mark = time.perf_counter()
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take saving out of the clock."""
        self._mark = time.perf_counter()

    def _read(self, step: int) -> None:
        losses = step_losses(self.losses, self.settings.accumulation)
        if not losses:
            return
        elapsed = time.perf_counter() - self._mark
        first_step = step - len(losses) + 1
        stop_if_not_finite(losses, first_step, self.folder)
        start = self.record.seconds
        for offset, (loss, learning_rate) in enumerate(zip(losses, self._learning_rates, strict=True)):
            self.record.add(
                {
                    "step": first_step + offset,
                    "tokens": (first_step + offset) * self.settings.tokens_per_step,
                    "seconds": start + elapsed * (offset + 1) / len(losses),
                    "loss": loss,
                    "learning_rate": learning_rate,
                }
            )
        self._learning_rates.clear()
        self._measure_memory()

    def _measure_memory(self) -> None:
        if self.device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self.device)
        else:
            self.peak_memory = max(self.peak_memory, psutil.Process().memory_info().rss)

    def _evaluate(self, model: torch.nn.Module) -> None:
        evaluation = evaluate_loss(
            model,
            self.validation,
            batch_size=self.settings.batch_size // self.settings.accumulation,
            device=self.device,
            dtype=getattr(torch, self.settings.dtype),
        )
        stop_if_not_finite([evaluation.loss], self.record.lines[-1]["step"], self.folder)
        self._validation_loss = evaluation.loss
        self.record.lines[-1]["validation_loss"] = evaluation.loss
        if self.log is not None:
            self.log({"eval_loss": evaluation.loss})
