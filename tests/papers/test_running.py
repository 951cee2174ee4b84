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
from evidence.papers.outcome import ExperimentRecord, Job, Outcome
from evidence.papers.running import Reproduction, Stopped
from exsel.cli.display import RunLines
from exsel.errors import ExselError
from exsel.training.run import Interrupted
from papers.fakes import FIRST, QUESTION, SECOND, Run, install, make_outcome


@pytest.fixture
def reproduction(tmp_path: Path) -> Reproduction:
    reproduction = Reproduction(
        budget="smoke", device="cpu", seeds=(0, 1), data=("a.txt",), text="a hash", folder=tmp_path / "out"
    )
    running.open_folder(reproduction, overwrite=False)
    return reproduction


def run(monkeypatch: pytest.MonkeyPatch, reproduction: Reproduction, first: Run) -> ExperimentRecord:
    install(monkeypatch, first=first, second=first, question=first)
    return running.reproduce(FIRST, reproduction, RunLines())


def test_an_experiment_is_given_its_job_and_its_record_is_kept(
    reproduction: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def first(job: Job) -> Outcome:
        jobs.append(job)
        (job.folder / "training").write_text("finished")
        return make_outcome()

    record = run(monkeypatch, reproduction, first)
    (job,) = jobs
    assert (job.budget, job.device, job.seeds, job.data) == ("smoke", "cpu", (0, 1), ("a.txt",))
    assert (reproduction.folder / "work" / "training").exists()
    assert ExperimentRecord.read(reproduction.folder / "first-one.json") == record
    assert running.records(reproduction) == [record]
    assert record.exsel_version == exsel.__version__
    assert record.machine["torch"] == torch.__version__
    assert record.command == "python -m evidence reproduce first-one --budget smoke --seeds 0,1 --data a.txt"
    assert 0 < record.seconds < 60
    stored = json.loads((reproduction.folder / "first-one.json").read_text())
    assert stored["format"] == 1
    assert list(stored) == [
        *("format", "experiment", "budget", "seeds", "device", "data", "outcome", "seconds", "started", "machine"),
        *("git_revision", "exsel_version", "command"),
    ]


def test_the_usual_seeds_need_no_flag(reproduction: Reproduction) -> None:
    assert (
        running.command(SECOND, replace(reproduction, seeds=(0,), data=()))
        == "python -m evidence reproduce second --budget smoke"
    )


@pytest.mark.parametrize("error", [ExselError("no text"), ImportError("no package")])
def test_what_fails_leaves_no_record(
    error: Exception, reproduction: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(job: Job) -> Outcome:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run(monkeypatch, reproduction, first)
    assert running.records(reproduction) == []


def test_too_little_memory_is_a_message(reproduction: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(job: Job) -> Outcome:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ExselError, match="the cpu ran out of memory"):
        run(monkeypatch, reproduction, first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_training", [True, False])
def test_both_signals_stop_it(
    number: signal.Signals, is_training: bool, reproduction: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(job: Job) -> Outcome:
        if is_training:
            raise Interrupted(number, 3)
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop:
        run(monkeypatch, reproduction, first)
    assert stop.value.signal == number
    assert signal.getsignal(signal.SIGTERM) is before
    assert running.records(reproduction) == []


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
def test_other_settings_are_refused(change: dict[str, Any], message: str, reproduction: Reproduction) -> None:
    running.check_settings(reproduction)
    with pytest.raises(ExselError) as refused:
        running.check_settings(replace(reproduction, **change))
    assert message in str(refused.value)


def test_settings_of_another_version_are_refused(reproduction: Reproduction) -> None:
    (reproduction.folder / running.SETTINGS).write_text("{}")
    with pytest.raises(ExselError, match="not of this version"):
        running.check_settings(reproduction)


def test_overwriting_takes_what_it_wrote_and_nothing_else(
    reproduction: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, reproduction, lambda job: make_outcome())
    running.reproduce(QUESTION, reproduction, RunLines())
    (reproduction.folder / "reproduction.md").write_text("page")
    (reproduction.folder / "notes.txt").write_text("mine")
    running.open_folder(reproduction, overwrite=False)
    assert len(running.records(reproduction)) == 2
    running.open_folder(replace(reproduction, budget="cpu"), overwrite=True)
    assert {path.name for path in reproduction.folder.iterdir()} == {"reproduction.json", "notes.txt"}
    running.check_settings(replace(reproduction, budget="cpu"))
