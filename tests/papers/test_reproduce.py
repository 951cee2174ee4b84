"""``python -m evidence reproduce`` from its flags to its files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli import conftest
from cli.conftest import Outcome
from evidence.__main__ import main
from evidence.papers import outcome
from evidence.papers.experiments import EXPERIMENTS
from evidence.papers.outcome import Job
from exsel.errors import ExselError
from exsel.files import locked
from papers.fakes import install, make_outcome

run_main = partial(conftest.run_main, main=main)

SMOKE = ("--budget", "smoke", "--device", "cpu")


class Fakes:
    """Three experiments that say what they were run with, the second of which can be told to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[tuple[str, Job]] = []
        self.error: BaseException | None = None
        self.outcome = replace(make_outcome(), charts=())  # which take most of the time
        install(monkeypatch, first=self._named("first-one"), second=self._second, question=self._named("question"))

    def _named(self, name: str) -> Any:
        def run(job: Job) -> outcome.Outcome:
            self.jobs.append((name, job))
            return self.outcome

        return run

    def _second(self, job: Job) -> outcome.Outcome:
        if self.error is not None:
            raise self.error
        return self._named("second")(job)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.jobs]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(monkeypatch)


def test_list_is_quick_and_names_all() -> None:
    script = (
        "import sys\nfrom evidence.__main__ import main\nassert main(['reproduce', '--list']) == 0\n"
        "assert not [name for name in ('torch', 'transformers', 'matplotlib', 'numpy') if name in sys.modules]"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["Name", "Source", "Experiment"]
    assert [line.split()[0] for line in lines[1:]] == [one.name for one in EXPERIMENTS]
    assert lines[1].endswith("  Zhai 2026, Figure 1                   Attention similarity bias by layer")


def test_all_of_them(fakes: Fakes, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fakes.outcome = make_outcome()
    outcome = run_main("reproduce", "all", *SMOKE, "--seeds", "3,4", "--out", folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert fakes.names == ["first-one", "second", "question"]
    assert all((job.budget, job.device, job.seeds) == ("smoke", "cpu", (3, 4)) for _, job in fakes.jobs)
    lines = outcome.out.splitlines()
    assert lines[0] == "[1 of 3] first-one: The first, with a comma (Zhai 2026, Figure 1)"
    assert lines[1].split() == ["Quantity", "Published", "Ours", "[95%", "interval]", "Difference", "Holds"]
    assert lines[2].split() == ["gain", "|", "loss", "1.5000", "2.0000", "[−0.4841,", "4.4841]", "+0.5000", "yes"]
    assert "Reproduced. So it is." in lines
    assert "Yes. So it is." in lines
    assert lines[-1] == f"page: {folder / 'reproduction.md'}"
    assert {path.name for path in folder.iterdir()} == {
        *("first-one.json", "second.json", "question.json", "reproduction.json", "reproduction.md", "reproduction"),
        "work",
    }
    assert "--seeds 3,4" in (folder / "reproduction.md").read_text()
    assert len(list((folder / "reproduction").glob("*.svg"))) == len(list((folder / "reproduction").glob("*.png"))) == 3


@pytest.mark.parametrize(("budget", "seeds"), [("smoke", (0,)), ("cpu", (0, 1, 2, 3, 4)), (None, (0, 1, 2, 3, 4))])
def test_seeds_and_budget_where_none_are_said(
    fakes: Fakes, tmp_path: Path, budget: str | None, seeds: tuple[int, ...]
) -> None:
    flags = [] if budget is None else ["--budget", budget]
    assert run_main("reproduce", "second", *flags, "--device", "cpu", "--out", tmp_path / "out").code == 0
    assert [(job.budget, job.seeds) for _, job in fakes.jobs] == [(budget or "cpu", seeds)]


def test_a_gpus_budget_on_the_cpu_is_remarked_on(fakes: Fakes, tmp_path: Path) -> None:
    outcome = run_main("reproduce", "second", "--budget", "gpu", "--device", "cpu", "--out", tmp_path / "out")
    assert outcome.code == 0
    assert "--budget gpu on the CPU takes hours" in outcome.err


def test_data_is_handed_on_as_it_was_named(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    named = str(tmp_path / "a.txt")
    assert run_main("reproduce", "second", *SMOKE, "--data", named, "--out", tmp_path / "out").code == 0
    assert fakes.jobs[0][1].data == (named,)


@pytest.mark.parametrize("error", [ExselError("no text to be had"), ImportError("x is not installed: pip install x")])
def test_one_that_fails_does_not_keep_the_others(fakes: Fakes, tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "out"
    fakes.error = error
    outcome = run_main("reproduce", "all", *SMOKE, "--out", folder)
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        f"exsel: second could not be run: {error}",
        "exsel: 1 of 3 could not be run: second",
    ]
    assert fakes.names == ["first-one", "question"]
    assert "**Not run.** `python -m evidence reproduce second` runs it." in (folder / "reproduction.md").read_text()
    fakes.error = None
    outcome = run_main("reproduce", "all", *SMOKE, "--out", folder, "--resume")
    assert outcome.code == 0
    assert fakes.names == ["first-one", "question", "second"]
    assert outcome.out.splitlines().count("finished before") == 2
    assert "**Not run.**" not in (folder / "reproduction.md").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("first-one.json", "{", "first-one.json is not JSON"),
        ("first-one.json", "", "first-one.json is not JSON"),
        ("first-one.json", "[" * 100_000, "first-one.json is not JSON"),
        ("first-one.json", "{}", "first-one.json is no record"),
        ("first-one.json", '{"format": 1}', "first-one.json is damaged"),
        ("second.json", None, "second.json is a record of first-one"),
        ("reproduction.json", "[1]", "reproduction.json is not of this version"),
        ("reproduction.json", "{", "reproduction.json is not JSON"),
        ("work/runs/a/result.json", "{}", "result.json is of a finished run whose exsel-manifest.json is missing"),
    ],
)
def test_what_is_damaged_is_named_before_anything_runs(
    fakes: Fakes, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    folder = tmp_path / "out"
    assert run_main("reproduce", "first-one", *SMOKE, "--out", folder).code == 0
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text((folder / "first-one.json").read_text() if text is None else text)
    assert_refused(run_main("reproduce", "all", *SMOKE, "--out", folder, "--resume"), message)
    assert fakes.names == ["first-one"]


def test_other_text_is_refused(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    command = ["reproduce", "second", *SMOKE, "--data", tmp_path / "a.txt", "--out", tmp_path / "out"]
    assert run_main(*command).code == 0
    assert run_main(*command, "--resume").code == 0
    (tmp_path / "a.txt").write_text("test")
    assert_refused(run_main(*command, "--resume"), "holds results on other text")


def test_a_folder_in_use_is_left_alone(fakes: Fakes, tmp_path: Path) -> None:
    command = ["reproduce", "second", *SMOKE, "--out", tmp_path / "out"]
    assert run_main(*command).code == 0
    with locked(tmp_path / "out"):
        for flag in ("--resume", "--overwrite"):
            assert_refused(run_main(*command, flag), "another process is at work in")
    assert (tmp_path / "out" / "second.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_how_to_go_on(fakes: Fakes, tmp_path: Path, number: signal.Signals) -> None:
    class Kill(Exception):  # noqa: N818
        def __init__(self) -> None:
            os.kill(os.getpid(), number)

    folder = tmp_path / "a folder"
    second = fakes._second

    def stopped(job: Job) -> outcome.Outcome:
        if len(fakes.jobs) == 1:
            raise Kill
        return second(job)

    sys.modules["evidence.papers.fakes"].run_second = stopped  # type: ignore[attr-defined]
    outcome = run_main("reproduce", "all", *SMOKE, "--out", folder, "--overwrite")
    assert outcome.code == 128 + number
    assert outcome.err == ""
    before, command = outcome.out.splitlines()[-2:]
    assert before == "stopped in second; go on with:"
    said = shlex.split(command)
    assert said[-4:] == ["cpu", "--out", str(folder), "--resume"]
    assert "--overwrite" not in said
    assert not (folder / "reproduction.md").exists()
    assert json.loads((folder / "first-one.json").read_text())["experiment"] == "first-one"
    fakes.jobs.append(("stopped", fakes.jobs[0][1]))
    assert run_main(*said[said.index("reproduce") :]).code == 0
    assert fakes.names == ["first-one", "stopped", "second", "question"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no experiment is named: give names with commas between, or all"),
        (["firstone"], "no experiment 'firstone' (did you mean first-one?)"),
        (["all", "--device", "mps"], "--device mps: choose auto, cpu or cuda"),
        (["all", "--device", "gpu"], "--device gpu: choose auto"),
        (["all", "--seeds", "1,1"], "--seeds must be different numbers, got 1, 1"),
        (["all", "--seeds", "-1"], "got -1"),
        (["all", "--data", "/no/such.txt"], "no such file or folder: /no/such.txt"),
        (["all", "--resume"], "holds nothing to resume"),
        (["all", "--resume", "--overwrite"], "give one of them"),
    ],
)
def test_mistakes(fakes: Fakes, tmp_path: Path, arguments: list[str], message: str) -> None:
    outcome = run_main("reproduce", *arguments, "--out", tmp_path / "out")
    assert_refused(outcome, message)
    assert fakes.jobs == []
    assert not (tmp_path / "out").exists()


def assert_refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2
    assert outcome.err.startswith("exsel: ")
    assert len(outcome.err.splitlines()) <= 2
    assert message in outcome.err


@pytest.mark.parametrize("arguments", [["all", "--budget", "huge"], ["all", "--seeds", "one"]])
def test_mistakes_that_the_parser_finds(fakes: Fakes, arguments: list[str]) -> None:
    outcome = run_main("reproduce", *arguments)
    assert outcome.code == 2
    assert arguments[-1] in outcome.err
    assert fakes.jobs == []


def test_what_is_in_the_folder(fakes: Fakes, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run_main("reproduce", "second", *SMOKE, "--out", folder).code == 0
    again = ["reproduce", "second", *SMOKE, "--out", folder]
    assert_refused(run_main(*again), "is not empty: add --resume to go on with it or --overwrite")
    assert_refused(run_main(*again, "--resume", "--seeds", "0,1"), "holds results with seeds 0, not 0, 1")
    assert_refused(run_main(*again, "--resume", "--budget", "cpu"), "holds results with budget smoke, not cpu")
    assert fakes.names == ["second"]
    assert run_main(*again, "--overwrite").code == 0
    assert fakes.names == ["second", "second"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    for flags in ([], ["--resume"], ["--overwrite"]):
        assert_refused(run_main(*again[:-1], tmp_path / "mine", *flags), "`python -m evidence reproduce` did not write")
    assert_refused(run_main(*again[:-1], tmp_path / "mine" / "notes.txt"), "is a file: name a folder")


def test_two_of_the_real_ones(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    outcome = run_main("reproduce", "sizes,tasks", *SMOKE, "--out", folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Holds exactly. The three have 0.680, 1.409, 2.685 billion parameters" in outcome.out
    assert "Not run. It needs six models" in outcome.out
    assert (folder / "reproduction.md").read_text().count("**Not run.**") == len(EXPERIMENTS) - 1
