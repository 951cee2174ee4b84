from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import exsel
from evidence.papers import running
from evidence.papers.experiment import Job, Outcome, Record
from evidence.papers.running import Plan, Stopped
from exsel.cli.display import LineProgress
from exsel.errors import ExselError
from exsel.training.run import Interrupted
from papers.fakes import FIRST, QUESTION, SECOND, Run, install, make_outcome


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = Plan(budget="smoke", device="cpu", seeds=(0, 1), data=("a.txt",), text="a hash", folder=tmp_path / "out")
    running.open_folder(plan, overwrite=False)
    return plan


def run(monkeypatch: pytest.MonkeyPatch, plan: Plan, first: Run) -> Record:
    install(monkeypatch, first=first, second=first, question=first)
    return running.reproduce(FIRST, plan, LineProgress())


def test_an_experiment_is_given_its_job_and_its_record_is_kept(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []

    def first(job: Job) -> Outcome:
        jobs.append(job)
        (job.folder / "training").write_text("finished")
        return make_outcome()

    record = run(monkeypatch, plan, first)
    (job,) = jobs
    assert (job.budget, job.device, job.seeds, job.data) == ("smoke", "cpu", (0, 1), ("a.txt",))
    assert (plan.folder / "work" / "training").exists()
    assert Record.read(plan.folder / "first-one.json") == record
    assert running.records(plan) == [record]
    assert record.exsel_version == exsel.__version__
    assert record.machine["torch"] == torch.__version__
    assert record.command == "python -m evidence reproduce first-one --budget smoke --seeds 0,1 --data a.txt"
    assert 0 < record.seconds < 60
    stored = json.loads((plan.folder / "first-one.json").read_text())
    assert stored["format"] == 1
    assert list(stored) == [
        *("format", "experiment", "budget", "seeds", "device", "data", "outcome", "seconds", "started", "machine"),
        *("git_revision", "exsel_version", "command"),
    ]


def test_the_usual_seeds_need_no_flag(plan: Plan) -> None:
    assert (
        running.command(SECOND, replace(plan, seeds=(0,), data=()))
        == "python -m evidence reproduce second --budget smoke"
    )


@pytest.mark.parametrize("error", [ExselError("no text"), ImportError("no package")])
def test_what_fails_leaves_no_record(error: Exception, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(job: Job) -> Outcome:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run(monkeypatch, plan, first)
    assert running.records(plan) == []


def test_too_little_memory_is_a_message(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(job: Job) -> Outcome:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ExselError, match="the cpu ran out of memory"):
        run(monkeypatch, plan, first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_training", [True, False])
def test_both_signals_stop_it(
    number: signal.Signals, is_training: bool, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(job: Job) -> Outcome:
        if is_training:
            raise Interrupted(number, 3)
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop:
        run(monkeypatch, plan, first)
    assert stop.value.signal == number
    assert signal.getsignal(signal.SIGTERM) is before
    assert running.records(plan) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "cpu"}, "results with budget smoke, not cpu"),
        ({"seeds": (0,)}, "results with seeds 0, 1, not 0:"),
        ({"data": ()}, "results with data a.txt, not none"),
        ({"device": "cuda"}, "results with device cpu, not cuda"),
        ({"text": "another"}, "holds results on other text"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], message: str, plan: Plan) -> None:
    running.check_settings(plan)
    with pytest.raises(ExselError) as refused:
        running.check_settings(replace(plan, **change))
    assert message in str(refused.value)


def test_settings_of_another_version_are_refused(plan: Plan) -> None:
    (plan.folder / running.SETTINGS).write_text("{}")
    with pytest.raises(ExselError, match="not of this version"):
        running.check_settings(plan)


def test_overwriting_takes_what_it_wrote_and_nothing_else(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, plan, lambda job: make_outcome())
    running.reproduce(QUESTION, plan, LineProgress())
    (plan.folder / "reproduction.md").write_text("page")
    (plan.folder / "notes.txt").write_text("mine")
    running.open_folder(plan, overwrite=False)
    assert len(running.records(plan)) == 2
    running.open_folder(replace(plan, budget="cpu"), overwrite=True)
    assert {path.name for path in plan.folder.iterdir()} == {"reproduction.json", "notes.txt"}
    running.check_settings(replace(plan, budget="cpu"))
