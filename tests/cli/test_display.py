from __future__ import annotations

import io
import shutil
import sys

import pytest
from rich.console import Console

from exsel.cli import display
from exsel.cli.display import RunLines, RunTable, evaluation_progress, make_progress, print_table
from exsel.cli.outputs import command_line, resume_command

ROWS = [{"name": "loss", "value": "1.5"}, {"name": "a longer name", "value": "10.25"}]
HEADINGS = {"name": "Name", "value": "Value", "absent": "Absent"}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=screen, force_terminal=True, width=100, highlight=False))
    return screen


def test_a_table_off_a_terminal_is_columns_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(ROWS, HEADINGS)
    assert capsys.readouterr().out == "Name           Value\nloss             1.5\na longer name  10.25\n"


def test_a_table_on_a_terminal_is_rich(terminal: io.StringIO) -> None:
    print_table(ROWS, HEADINGS)
    assert "\x1b[1m" in terminal.getvalue()
    assert "10.25" in terminal.getvalue()
    assert "Absent" not in terminal.getvalue()


def test_lines_come_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_progress(), RunLines)
    progress = RunLines()
    progress.start("run", 100, 0)
    for step in range(1, 101):
        progress.advance(step, 1.0, 2.0 if step >= 50 else None, 1234.5)
    progress.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: 100 steps"
    assert lines[1] == "run: step 1/100, loss 1.0000, 1,234 tokens/s"
    assert lines[-1] == "run: step 100/100, loss 1.0000, validation 2.0000, 1,234 tokens/s"
    assert len(lines) == 12


def test_at_least_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    progress = RunLines()
    progress.start("run", 10_000, 0)
    for step in range(1, 21):
        now[0] += 31.0
        progress.advance(step, 1.0, None, 10.0)
    assert len(capsys.readouterr().out.splitlines()) == 11


def test_a_resumed_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    RunLines().start("run", 10, 4)
    assert capsys.readouterr().out == "run: 10 steps, resumed after step 4\n"


def test_a_bar(terminal: io.StringIO) -> None:
    progress = make_progress()
    assert isinstance(progress, RunTable)
    progress.start("run", 4, 1)
    progress.advance(2, 1.5, 2.5, 10.0)
    progress.note("a note")
    progress.advance(4, 1.25, 2.25, 10.0)
    progress.finish()
    progress.finish()
    shown = terminal.getvalue()
    assert "a note" in shown
    assert "4/4" in shown
    assert "loss 1.2500, validation 2.2500, 10 tokens/s" in shown


def test_evaluation_shows_a_bar_on_a_terminal_alone(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with evaluation_progress() as on_batch:
        assert on_batch is not None
        on_batch(3, 7)
    assert "3/7" in terminal.getvalue()
    monkeypatch.setattr(display, "console", Console(file=io.StringIO()))
    with evaluation_progress() as on_batch:
        assert on_batch is None


@pytest.mark.parametrize(
    ("program", "on_path", "expected"),
    [
        ("/env/bin/exsel", "/env/bin/exsel", "exsel train"),
        ("/env/bin/exsel", None, "/env/bin/exsel train"),
        ("/env/bin/exsel", "/other/bin/exsel", "/env/bin/exsel train"),
        ("/src/exsel/__main__.py", None, f"{sys.executable} -m exsel train"),
        ("/src/evidence/__main__.py", None, f"{sys.executable} -m evidence train"),
        ("/env/site-packages/pytest/__main__.py", None, "exsel train"),
        ("/usr/bin/pytest", None, "exsel train"),
    ],
)
def test_the_command_names_the_program_that_runs(
    monkeypatch: pytest.MonkeyPatch, program: str, on_path: str | None, expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(shutil, "which", lambda name: on_path)
    assert command_line(["train"]) == expected


def test_the_command_to_go_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    given = ["train", "--overwrite", "--data", "a b", "--resume", "--out", "x"]
    assert resume_command(given) == "exsel train --data 'a b' --out x --resume"
