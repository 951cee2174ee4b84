from __future__ import annotations

import io
import re
import shutil
import sys
import time

import pytest
from rich.console import Console

from exsel.cli import display
from exsel.cli.display import RunLines, RunTable, evaluation_progress, make_progress, print_table
from exsel.cli.forecast import Forecast
from exsel.cli.outputs import command_line, resume_command
from exsel.training.progress import PlannedRun

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


def test_a_table_too_wide_for_the_terminal_is_turned(terminal: io.StringIO) -> None:
    rows = [{"name": name, **{f"value {index}": "1" * 10 for index in range(12)}} for name in ("first", "second")]
    print_table(rows, {key: key for key in rows[0]})
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).splitlines()
    assert lines[0].split() == ["name", "first", "second"]
    assert [line.split() for line in lines[1:]] == [["value", str(index), "1" * 10, "1" * 10] for index in range(12)]


def test_a_table_on_a_terminal_is_rich(terminal: io.StringIO) -> None:
    print_table(ROWS, HEADINGS)
    assert "\x1b[1m" in terminal.getvalue()
    assert "10.25" in terminal.getvalue()
    assert "Absent" not in terminal.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the displays' clock shows."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_come_from_time_to_time(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    progress = make_progress()
    assert isinstance(progress, RunLines)
    progress.start("run", 100, 0)
    for step in range(1, 101):
        clock[0] += 60 if step == 1 else 0.5
        progress.advance(step, 1.0, 2.0 if step >= 50 else None, 1234.5)
    progress.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: 100 steps"
    assert lines[1] == "run: step 1/100, loss 1.0000, 1,234 tokens/s"
    # As soon as the time is known; compiling, before the first step, is no part of it.
    assert lines[2].startswith("run: step 4/100, loss 1.0000, 1,234 tokens/s, about 50 s left, until ")
    assert lines[-1] == "run: step 100/100, loss 1.0000, validation 2.0000, 1,234 tokens/s"
    assert len(lines) == 13


def test_at_least_a_line_a_minute(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    progress = RunLines()
    progress.start("run", 10_000, 0)
    for step in range(1, 21):
        clock[0] += 31.0
        progress.advance(step, 1.0, None, 10.0)
    # And one more as soon as the time is known.
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_a_resumed_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    RunLines().start("run", 10, 4)
    assert capsys.readouterr().out == "run: 10 steps, resumed after step 4\n"


def test_the_forecast_is_of_all_runs(clock: list[float]) -> None:
    forecast = Forecast()
    forecast.plan({"kept": 50, "first": 20, "second": 20, "third": 20}, steps_at_end=5)
    forecast.finish("kept")
    forecast.start("first", 20, 10)
    clock[0] += 30  # compiling
    for step in range(11, 14):
        forecast.advance(step)
        assert forecast.seconds_left() is None
        clock[0] += 2
    forecast.advance(14)
    assert forecast.seconds_left() == 6 * 2 + 2 * (30 + 20 * 2) + 5 * 2
    for step in range(15, 21):
        clock[0] += 2
        forecast.advance(step)
    clock[0] += 7  # saving
    forecast.finish("first")
    clock[0] += 5
    forecast.start("second", 20, 0)
    clock[0] += 10
    forecast.advance(1)
    assert forecast.seconds_left() == 19 * 2 + 7 + (15 + 20 * 2 + 7) + 5 * 2
    for step in range(2, 5):
        clock[0] += 4  # a slower variant
        forecast.advance(step)
    assert forecast.seconds_left() == 16 * 4 + 7 + 15 + 7 + 25 * (9 * 2 + 3 * 4) / 12


PLAN = [
    PlannedRun(name="baseline (1 of 3)", steps=4),
    PlannedRun(name="exclusive (2 of 3)", steps=4, baseline="baseline (1 of 3)"),
    PlannedRun(name="selective (3 of 3)", steps=4, baseline="baseline (1 of 3)"),
]


def show(progress: RunTable | RunLines) -> None:
    """A comparison whose baseline was there, and that is stopped in its second run."""
    progress.plan(PLAN)
    progress.kept("baseline (1 of 3)", [{"step": 2, "loss": 2.5}, {"step": 4, "loss": 2.0}])
    progress.start("exclusive (2 of 3)", 4, 0)
    progress.advance(2, 1.5, 2.25, 10.0)
    progress.note("a note")
    progress.advance(3, 1.25, 2.25, 10.0)
    progress.finish()


@pytest.mark.parametrize("width", [100, 40])
def test_the_table_shows_every_run_beside_the_baseline(
    width: int, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "console", Console(file=terminal, force_terminal=True, width=width, height=30))
    progress = make_progress()
    assert isinstance(progress, RunTable)
    show(progress)
    progress.close()
    progress.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = shown[shown.rindex("Run ") :].splitlines()
    assert "a note" in shown
    assert all(len(line) <= width for line in last)
    rows = [line for line in last if " of 3)" in line]
    assert "4/4" in rows[0]
    assert ("2.0000" in rows[0]) is (width == 100)
    for part in ("3/4", "−0.2500"):  # at step 2, where it was validated
        assert part in rows[1]
    assert "0/4" in rows[2]
    assert "1 of 3 runs done" in shown


def test_lines_show_the_baseline_beside(capsys: pytest.CaptureFixture[str]) -> None:
    show(RunLines())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "baseline (1 of 3): finished before"
    beside = "validation 2.2500 (−0.2500 to the baseline)"
    assert lines[2] == f"exclusive (2 of 3): step 2/4, loss 1.5000, {beside}, 10 tokens/s"


@pytest.mark.parametrize("kind", [RunTable, RunLines])
def test_a_run_that_was_finished_before_needs_no_plan(kind: type[RunTable | RunLines]) -> None:
    progress = kind()
    progress.kept("run", [{"step": 4, "loss": 2.0}])
    progress.close()


def test_a_long_table_keeps_to_the_screen(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "console", Console(file=terminal, force_terminal=True, width=100, height=10))
    progress = RunTable()
    progress.plan([PlannedRun(name=f"run {index:02}", steps=4) for index in range(50)])
    progress.start("run 40", 4, 0)
    progress.close()
    shown = set(re.findall(r"run \d\d", terminal.getvalue()))
    assert shown == {f"run {index}" for index in range(37, 43)}


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
