"""How long runs still take: from the seconds of their steps, and of what lies around the steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from exsel.report.formatting import time_left

# Steps that are measured before anything is said.
_FEWEST_STEPS = 3
# Seconds from which on the day is said, too.
_SAME_DAY = 20 * 3600


class Forecast:
    """The time that planned runs still take.

    A step is taken to last as long as the mean one so far, of the same run where that is known, evaluating and saving
    included. Each run to come also takes what the last one did around its steps: building its model, compiling, and
    after its last step evaluating and saving.
    """

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._name: str | None = None
        # Of finished runs: their steps and seconds, and the seconds before the first and after the last step of one.
        self._steps, self._seconds, self._before, self._after = 0, 0.0, 0.0, 0.0
        self._steps_at_end = 0
        # Of the current run: the steps since it was first heard of, their seconds, that moment, and the step it is at.
        self._own_steps, self._own_seconds, self._first, self._step = 0, 0.0, 0.0, 0
        self._begun = self._ended = self._last = time.monotonic()

    def plan(self, steps: Mapping[str, int], steps_at_end: int = 0) -> None:
        """The runs to come, each with its steps, and steps that are taken when all runs are over."""
        self._left, self._steps_at_end = dict(steps), steps_at_end

    def start(self, name: str, steps: int, done: int) -> None:
        """A run begins, or goes on after the steps that are done."""
        self._name, self._left[name], self._begun = name, steps - done, time.monotonic()
        self._own_steps, self._own_seconds, self._first, self._step = 0, 0.0, 0.0, done
        self._last = self._begun

    def advance(self, step: int) -> None:
        """The run has come to a step."""
        assert self._name is not None
        now, taken = time.monotonic(), step - self._step
        self._left[self._name] -= taken
        self._step, self._last = step, now
        if self._first:
            self._own_steps, self._own_seconds = self._own_steps + taken, now - self._first
        else:
            self._first, self._before = now, now - self._begun + (self._begun - self._ended if self._steps else 0.0)

    def finish(self, name: str) -> None:
        """A run is over, or was before."""
        self._left.pop(name, None)
        if name == self._name:
            self._steps, self._seconds = self._steps + self._own_steps, self._seconds + self._own_seconds
            self._name, self._own_steps, self._own_seconds = None, 0, 0.0
            self._ended = time.monotonic()
            self._after = self._ended - self._last

    @property
    def is_over(self) -> bool:
        """Whether no run is left."""
        return not self._left

    def seconds_left(self) -> float | None:
        """Of all runs together; ``None`` until some steps are measured."""
        steps, seconds = self._steps + self._own_steps, self._seconds + self._own_seconds
        if steps < _FEWEST_STEPS:
            return None
        mean = seconds / steps
        own = self._own_seconds / self._own_steps if self._own_steps >= _FEWEST_STEPS else mean
        to_come = {name: count for name, count in self._left.items() if name != self._name}
        current = self._left.get(self._name, 0) if self._name is not None else 0
        steps_to_come = sum(to_come.values()) + self._steps_at_end
        around = len(to_come) * self._before + len(self._left) * self._after
        return current * own + steps_to_come * mean + around

    def words(self) -> str:
        """What is left and when all is over: ``about 5 min left, until 14:32``; empty while it is not known."""
        seconds = self.seconds_left()
        if seconds is None or not any(self._left.values()):
            return ""
        end = datetime.now().astimezone() + timedelta(seconds=seconds)
        day = f" on {end:%d %B}" if seconds > _SAME_DAY else ""
        return f"{time_left(seconds)}, until {end:%H:%M}{day}"
