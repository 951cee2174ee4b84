"""What the user sees: rich output on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False)


def print_table(rows: Sequence[Mapping[str, str]], headings: Mapping[str, str]) -> None:
    """A table: ruled on a terminal, columns of plain text elsewhere."""
    keys = [key for key in headings if rows and key in rows[0]]
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, key in enumerate(keys):
            table.add_column(headings[key], justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(row[key] for key in keys))
        console.print(table)
        return
    lines = [[row[key] for key in keys] for row in (headings, *rows)]
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        padded = [name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))]
        print("  ".join(padded).rstrip(), flush=True)


def make_progress() -> BarProgress | LineProgress:
    """The display of runs that suits standard output."""
    return BarProgress() if console.is_terminal else LineProgress()


class BarProgress:
    """A bar for each run, with the latest losses and the speed; see :class:`exsel.training.monitor.Progress`."""

    _bars: Progress | None = None

    def start(self, name: str, steps: int, done: int) -> None:
        """Begin a bar."""
        self._bars = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
        )
        self._bars.start()
        self._bars.add_task(name, total=steps, completed=done, detail="compiling …")

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        """Move the bar."""
        assert self._bars is not None
        detail = _detail(loss, validation_loss, tokens_per_second)
        self._bars.update(self._bars.task_ids[0], completed=step, detail=detail)

    def note(self, text: str) -> None:
        """Print above the bar."""
        console.print(text)

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class LineProgress:
    """A plain line at the start, ten or so on the way, and at least one a minute."""

    def start(self, name: str, steps: int, done: int) -> None:
        """Say which run begins."""
        self._name, self._steps, self._next = name, steps, done
        resumed = f", resumed after step {done}" if done else ""
        self.note(f"{name}: {steps} steps{resumed}")

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        """Say how far it is, from time to time."""
        if step < self._next and step < self._steps and time.monotonic() - self._printed_at < 60:
            return
        self._next = step + max(1, self._steps // 10)
        self.note(f"{self._name}: step {step}/{self._steps}, {_detail(loss, validation_loss, tokens_per_second)}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._printed_at = time.monotonic()
        print(text, flush=True)

    def finish(self) -> None:
        """Nothing to clear away."""


def _detail(loss: float, validation_loss: float | None, tokens_per_second: float) -> str:
    validation = "" if validation_loss is None else f", validation {validation_loss:.4f}"
    return f"loss {loss:.4f}{validation}, {tokens_per_second:,.0f} tokens/s"


def warn(text: str) -> None:
    """Print a line to standard error."""
    print(f"exsel: {text}", file=sys.stderr, flush=True)


@contextmanager
def evaluation_progress(what: str = "evaluating") -> Iterator[Callable[[int, int], None] | None]:
    """A function that shows how many blocks (or batches) of how many are done; None off a terminal."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(what, style="bold"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
