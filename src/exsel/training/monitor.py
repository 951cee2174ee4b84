"""What happens between the steps of a run: clock, record, validation, display and interruption."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import nn
from transformers import TrainerCallback

from exsel.evaluation import Evaluation, evaluate_loss
from exsel.training.processes import Processes
from exsel.training.progress import Progress
from exsel.training.settings import Settings
from exsel.training.step_record import StepRecord

# The displayed speed is the median over this many steps.
_SPEED_STEPS = 50


@dataclass(kw_only=True, eq=False)
class Monitor(TrainerCallback):
    """Does all that the module's description lists. The clock stops while the run evaluates and saves.

    Args:
        processes: those that train together: they stop after the same step, and the losses are their means.
        signal: the signal that asked the run to stop.
        log: sends the validation loss to the trainer's loggers; set once there is a trainer.
        evaluation: the latest on the validation blocks; ``None``: there was none in this process.
    """

    settings: Settings
    validation: Any
    record: StepRecord
    progress: Progress
    processes: Processes = field(default_factory=Processes)
    signal: int | None = None
    log: Callable[[dict[str, float]], None] | None = None
    peak_memory: int = 0
    evaluation: Evaluation | None = None
    _learning_rates: list[float] = field(default_factory=list)
    _clock: float = 0.0

    def __post_init__(self) -> None:
        self._device = torch.device(self.settings.device)
        # Reading the losses waits for the device. So on a GPU it happens only every few steps.
        self._window = 1 if self._device.type == "cpu" else 10
        self._evaluation_steps = set(self.settings.evaluation_steps())

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM while the block runs; a second Ctrl-C stops at once.

        The handler only notes the signal: it may interrupt a write to standard output, and must not write there itself.
        """

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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._measure_memory()
        self._clock = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rate of the step."""
        self._learning_rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record the steps since the last reading; evaluate if it is due; stop if asked to."""
        step = state.global_step
        is_due = step in self._evaluation_steps
        self.signal = self.processes.largest(self.signal or 0) or None
        if self.signal is not None:
            self.progress.note(f"stopping after step {step}, and saving a checkpoint …")
            control.should_save = control.should_training_stop = True
        if is_due or control.should_save or step % self._window == 0 or step == self.settings.steps:
            self._read_losses(step)
            if is_due:
                self._evaluate(kwargs["model"])
            self.record.flush()
            speed = self.settings.tokens_per_step / statistics.median(self.record.step_seconds()[-_SPEED_STEPS:])
            validation_loss = None if self.evaluation is None else self.evaluation.loss
            self.progress.advance(step, self.record.lines[-1]["loss"], validation_loss, speed)
            self._clock = time.perf_counter()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restart the clock, so that saving does not count."""
        self._clock = time.perf_counter()

    def _read_losses(self, last_step: int) -> None:
        losses = self.processes.mean(self.record.take_losses(self.settings.accumulation))
        if not losses:
            return
        elapsed, start = time.perf_counter() - self._clock, self.record.seconds
        first_step = last_step - len(losses) + 1
        self.record.check_finite(losses, first_step)
        for index, (loss, learning_rate) in enumerate(zip(losses, self._learning_rates, strict=True)):
            self.record.add(
                {
                    "step": first_step + index,
                    "tokens": (first_step + index) * self.settings.tokens_per_step,
                    "seconds": start + elapsed * (index + 1) / len(losses),
                    "loss": loss,
                    "learning_rate": learning_rate,
                }
            )
        self._learning_rates.clear()
        self._measure_memory()

    def _measure_memory(self) -> None:
        if self._device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self._device)
        else:
            self.peak_memory = max(self.peak_memory, psutil.Process().memory_info().rss)

    def _evaluate(self, model: nn.Module) -> None:
        self.evaluation = evaluate_loss(
            model,
            self.validation,
            batch_size=self.processes.share(self.settings.micro_batch_size),
            device=self._device,
            dtype=getattr(torch, self.settings.dtype),
        )
        line, loss = self.record.lines[-1], self.evaluation.loss
        self.record.check_finite([loss], line["step"])
        line["validation_loss"] = loss
        if self.log is not None:
            self.log({"eval_loss": loss})
