"""What the user sees: rich output on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from exsel.cli.forecast import Forecast
from exsel.report.formatting import compact, duration, fixed, signed
from exsel.training.progress import PlannedRun, Progress

console = Console(highlight=False)


def print_table(rows: Sequence[Mapping[str, str]], headings: Mapping[str, str]) -> None:
    """A table: ruled on a terminal, columns of plain text elsewhere.

    On a terminal that is too narrow for it, its columns become rows.
    """
    keys = [key for key in headings if rows and key in rows[0]]
    lines = [[row[key] for key in keys] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if console.is_terminal:
        # A heading may be broken between its words.
        least = [max(max(map(len, heading.split())), *map(len, cells)) for heading, *cells in zip(*lines, strict=True)]
        if sum(least) + 2 * len(least) - 2 > console.width:
            lines = [list(line) for line in zip(*lines, strict=True)]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, heading in enumerate(lines[0]):
            table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
        for cells in lines[1:]:
            table.add_row(*cells)
        console.print(table)
        return
    for name, *cells in lines:
        padded = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        print("  ".join(padded).rstrip(), flush=True)


def make_progress() -> RunTable | RunLines:
    """The display of runs that suits standard output."""
    return RunTable() if console.is_terminal else RunLines()


@dataclass(kw_only=True)
class _Shown:
    """A run as it is shown: what was planned, and how far it is."""

    run: PlannedRun
    step: int = 0
    loss: float | None = None
    validations: dict[int, float] = field(default_factory=dict)
    state: str = ""


class _Runs(Progress):
    """What both displays know: the runs, and how long all of them still take."""

    def __init__(self) -> None:
        self._runs: dict[str, _Shown] = {}
        self._forecast = Forecast()
        self._name = ""

    def plan(self, runs: Sequence[PlannedRun], steps_at_end: int = 0) -> None:
        self._runs = {run.name: _Shown(run=run) for run in runs}
        self._forecast.plan({run.name: run.steps for run in runs}, steps_at_end)

    def kept(self, name: str, curve: Sequence[Mapping[str, Any]]) -> None:
        planned = PlannedRun(name=name, steps=curve[-1]["step"])
        shown = self._runs.setdefault(name, _Shown(run=planned))
        shown.validations = {point["step"]: point["loss"] for point in curve}
        shown.step, shown.state = shown.run.steps, "done before"
        self._forecast.finish(name)

    def start(self, name: str, steps: int, done: int) -> None:
        self._name, self._begun = name, time.monotonic()
        if name not in self._runs:
            self._runs = {name: _Shown(run=PlannedRun(name=name, steps=steps))}
        self._current.step, self._current.state = done, "starting …"
        self._forecast.start(name, steps, done)

    @property
    def _current(self) -> _Shown:
        return self._runs[self._name]

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        shown = self._current
        shown.step, shown.loss, shown.state = step, loss, f"{compact(tokens_per_second)} tokens/s"
        if validation_loss is not None and [validation_loss] != list(shown.validations.values())[-1:]:
            shown.validations[step] = validation_loss
        self._forecast.advance(step)

    def finish(self) -> None:
        self._current.state = f"in {duration(time.monotonic() - self._begun)}"
        self._forecast.finish(self._name)

    def _losses(self, shown: _Shown) -> tuple[float | None, float | None]:
        """A run's last validation loss, and how far the baseline's at that step lies below it."""
        if not shown.validations:
            return None, None
        step, loss = list(shown.validations.items())[-1]
        baseline = self._runs.get(shown.run.baseline or "")
        beside = None if baseline is None else baseline.validations.get(step)
        return loss, None if beside is None else loss - beside


# The columns of the table of runs, each with the fewest characters of a screen that it is shown on.
_COLUMNS = {"Run": 0, "Progress": 100, "Step": 0, "Loss": 72, "Validation": 50, "To baseline": 0, "Speed": 72}


class RunTable(_Runs):
    """One live table of all runs, with the time that they still take below it."""

    _live: Live | None = None

    def start(self, name: str, steps: int, done: int) -> None:
        """Begin a run; the table appears with the first one."""
        super().start(name, steps, done)
        if self._live is None:
            self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2)
            self._live.start()

    def note(self, text: str) -> None:
        """Print above the table."""
        console.print(text)

    def finish(self) -> None:
        """Say how long the run took; after the last one, leave the table as it is."""
        super().finish()
        if self._forecast.is_over:
            self.close()

    def close(self) -> None:
        """Leave the table as it is, whether all runs are done or not."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> Group:
        names, room = list(self._runs), max(3, console.height - 4)
        # As many rows as the screen has, with the current one among them.
        first = max(0, min(names.index(self._name) - room // 2, len(names) - room)) if self._name else 0
        columns = [heading for heading, least in _COLUMNS.items() if console.width >= least]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns:
            is_left = heading in ("Run", "Progress", "Speed")
            table.add_column(heading, justify="left" if is_left else "right", no_wrap=heading != "Run", overflow="fold")
        for name in names[first : first + room]:
            shown = self._runs[name]
            steps = shown.run.steps
            loss, difference = self._losses(shown)
            cells: dict[str, RenderableType] = {
                "Run": name,
                "Progress": ProgressBar(total=steps, completed=shown.step, width=20),
                "Step": f"{shown.step}/{steps}",
                "Loss": fixed(shown.loss),
                "Validation": fixed(loss),
                "To baseline": signed(difference),
                "Speed": shown.state,
            }
            style = "bold" if name == self._name else "" if shown.state else "dim"
            table.add_row(*(cells[heading] for heading in columns), style=style)
        done = sum(shown.step >= shown.run.steps for shown in self._runs.values())
        words = [f"{done} of {len(names)} runs done"] if len(names) > 1 else []
        return Group(table, Text(", ".join([*words, *filter(None, [self._forecast.words()])])))


class RunLines(_Runs):
    """A plain line at a run's start, ten or so on the way, and at least one a minute."""

    def kept(self, name: str, curve: Sequence[Mapping[str, Any]]) -> None:
        """Say so."""
        super().kept(name, curve)
        self.note(f"{name}: finished before")

    def start(self, name: str, steps: int, done: int) -> None:
        """Say which run begins."""
        super().start(name, steps, done)
        self._next = done
        resumed = f", resumed after step {done}" if done else ""
        self.note(f"{name}: {steps} steps{resumed}")

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        """Say how far it is, from time to time, and as soon as it is known how long all take."""
        was_known = bool(self._forecast.words())
        super().advance(step, loss, validation_loss, tokens_per_second)
        left, steps = self._forecast.words(), self._current.run.steps
        is_due = step >= self._next or step >= steps or time.monotonic() - self._printed_at >= 60
        if not is_due and (was_known or not left):
            return
        self._next = step + max(1, steps // 10)
        validation, difference = self._losses(self._current)
        parts = [f"loss {loss:.4f}"]
        if validation is not None:
            beside = "" if difference is None else f" ({signed(difference)} to the baseline)"
            parts.append(f"validation {validation:.4f}{beside}")
        parts.append(f"{tokens_per_second:,.0f} tokens/s")
        runs = f"all {len(self._runs)} runs: " if len(self._runs) > 1 else ""
        if left and (step < steps or runs):
            parts.append(f"{runs}{left}")
        self.note(f"{self._name}: step {step}/{steps}, {', '.join(parts)}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._printed_at = time.monotonic()
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a line to standard error."""
    print(f"exsel: {text}", file=sys.stderr, flush=True)


@contextmanager
def activity() -> Iterator[Callable[[str], None]]:
    """A function that says on standard error what goes on: off a terminal in a line each.

    On a terminal indented text, which is a part of what was said before, passes in one line.
    """
    errors = Console(stderr=True, highlight=False)
    if not errors.is_terminal:
        yield errors.print
        return
    with errors.status("") as status:
        yield lambda text: status.update(text) if text.startswith(" ") else errors.print(text)


@contextmanager
def evaluation_progress(what: str = "evaluating") -> Iterator[Callable[[int, int], None] | None]:
    """A function that shows how many blocks (or batches) of how many are done; None off a terminal."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(what, style="bold"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
