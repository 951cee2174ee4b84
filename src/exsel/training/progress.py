"""Who is told how runs go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that is to come.

    Args:
        name: as the run is shown.
        steps: how many it takes.
        baseline: name of the run whose losses are shown beside its own; ``None``: of none.
    """

    name: str
    steps: int
    baseline: str | None = None


class Progress:
    """Who is told how runs go; this one tells nobody."""

    def plan(self, runs: Sequence[PlannedRun], steps_at_end: int = 0) -> None:
        """These runs are to come, in this order, and when all are over as many steps to time."""

    def kept(self, name: str, curve: Sequence[Mapping[str, Any]]) -> None:
        """A planned run was finished before, with this validation curve."""

    def start(self, name: str, steps: int, done: int) -> None:
        """A run begins, ``done`` of its steps already taken."""

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        """Steps up to ``step`` are taken; the losses are the latest."""

    def note(self, text: str) -> None:
        """Show a message."""

    def finish(self) -> None:
        """The run is over, well or not."""

    def close(self) -> None:
        """No run is to come."""
