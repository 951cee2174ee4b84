"""The display of ``exsel bench`` on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from exsel.bench.measuring import Display


class BarDisplay(Display):
    """A bar over the cases, with the current preparation or the number of rounds done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID = bars.add_task("bench", total=None, detail="")

    def case(self, title: str, number: int, of: int) -> None:
        """A case begins."""
        self._bars.update(self._task, description=title, completed=number, total=of, detail="")

    def doing(self, what: str) -> None:
        """What takes time now."""
        self._bars.update(self._task, detail=what)

    def measured(self, rounds: int, of: int) -> None:
        """Some rounds of a case are done."""
        self._bars.update(self._task, detail=f"round {rounds} of {of}")


class LineDisplay(Display):
    """A line for each case, and one for each of its parts."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def case(self, title: str, number: int, of: int) -> None:
        """A case begins."""
        self._console.print(f"{title} (case {number + 1} of {of})")

    def doing(self, what: str) -> None:
        """What takes time now."""
        self._console.print(f"  {what}")


@contextmanager
def make_display() -> Iterator[Display]:
    """The display that suits standard error."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    columns = (
        TextColumn("{task.description}", style="bold"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield BarDisplay(bars)
