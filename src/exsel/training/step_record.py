"""The record of a run: one line of ``metrics.jsonl`` for each step."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exsel.errors import ExselError
from exsel.files import write_text
from exsel.training.output_folder import METRICS, last_good, or_go_on


@dataclass(kw_only=True)
class StepRecord:
    """The steps of a run: their losses, learning rates and training time (without evaluating and saving).

    Args:
        folder: the run's own.
        writes: whether this process writes the file.
        lines: one per step, as in the file.
        losses: one per micro-batch, for steps without a line yet, kept as tensors: reading them waits for the device.
    """

    folder: Path
    writes: bool = True
    lines: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    _unwritten: int = 0

    @classmethod
    def begin(cls, folder: Path, checkpoint: Path | None, *, writes: bool = True) -> StepRecord:
        """The record of a run that begins, or goes on from a checkpoint, which has the lines up to its step.

        The file in ``folder`` is replaced: a run that was killed may have written more lines, or half a line.
        """
        record = cls(folder=folder, writes=writes)
        if checkpoint is not None:
            text = (checkpoint / METRICS).read_text(encoding="utf-8")
            record.lines = [json.loads(line) for line in text.splitlines()]
        record.save(folder)
        return record

    def save(self, folder: Path) -> None:
        """Write all lines into a file of a folder."""
        if self.writes:
            write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, line: dict[str, Any]) -> None:
        """Add a step; it is on disk after the next :meth:`flush`."""
        self.lines.append(line)
        self._unwritten += 1

    def flush(self) -> None:
        """Append the lines that were added to the file."""
        if not (self.writes and self._unwritten):
            return
        path = self.folder / METRICS
        with or_go_on(f"{path} could not be written", self.folder), path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.lines[-self._unwritten :]))
        self._unwritten = 0

    def take_losses(self, parts: int) -> list[float]:
        """Remove the losses of whole steps, each of ``parts`` micro-batches, and return them; waits for the device."""
        whole = len(self.losses) // parts * parts
        taken = torch.stack(self.losses[:whole]).view(-1, parts).sum(1).tolist() if whole else []
        del self.losses[:whole]
        return [float(loss) for loss in taken]

    def check_finite(self, losses: list[float], first_step: int) -> None:
        """Stop at the first loss that is not finite, naming the step and the last good checkpoint."""
        for step, loss in enumerate(losses, start=first_step):
            if not math.isfinite(loss):
                raise ExselError(
                    f"the loss became {loss} at step {step}; {last_good(self.folder)}. "
                    "Try a lower --lr, more warm-up or --dtype float32"
                )

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    def step_seconds(self) -> list[float]:
        """The seconds of each step."""
        return [later - earlier for earlier, later in pairwise([0.0, *(line["seconds"] for line in self.lines)])]
