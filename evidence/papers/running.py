"""Run experiments and keep what they found, each in a file of its own as soon as it is there."""

from __future__ import annotations

import importlib
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import exsel
from evidence.papers import experiments
from evidence.papers.experiments import Experiment
from evidence.papers.outcome import FORMAT, Budget, ExperimentRecord, Job, Outcome
from evidence.papers.results_page import PAGE, PICTURES
from exsel.errors import ExselError
from exsel.files import read_json, write_json
from exsel.machine import describe_machine, git_revision
from exsel.training.output_folder import RUNS
from exsel.training.progress import Progress
from exsel.training.run import Interrupted, finished

#: Of an output folder: what everything in it was made with, and the experiments' own folder.
SETTINGS, WORK = "reproduction.json", "work"

#: Where none are asked for.
SEEDS: Mapping[Budget, tuple[int, ...]] = {"smoke": (0,), "cpu": (0, 1, 2, 3, 4), "gpu": (0, 1)}


class Stopped(Exception):  # noqa: N818 (it is no error)
    """An experiment was asked to stop; what it had finished is kept."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is to be run.

    Args:
        budget, device, seeds, data: of every :class:`evidence.papers.outcome.Job`.
        text: see :func:`evidence.papers.variant_runs.identify_text`.
        folder: where everything goes.
    """

    budget: Budget
    device: str
    seeds: tuple[int, ...]
    data: tuple[str, ...]
    text: str
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What results must have in common, as JSON types."""
        return {
            "budget": self.budget,
            "device": self.device,
            "seeds": list(self.seeds),
            "data": list(self.data),
            "text": self.text,
        }


def is_reproduction(folder: Path) -> bool:
    """Whether a folder is one that :func:`open_folder` made."""
    return (folder / SETTINGS).is_file()


def check_settings(reproduction: Reproduction) -> None:
    """Check that what is in the folder is whole and was made with the reproduction's settings.

    Raises:
        ExselError: with others, which it names, or a record or a training is damaged.
    """
    found = read_json(reproduction.folder / SETTINGS)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ExselError(f"{reproduction.folder / SETTINGS} is not of this version of exsel: choose another --out")
    for name, value in reproduction.settings.items():
        if name == "text" and found.get(name) != value:
            raise ExselError(
                f"--out {reproduction.folder} holds results on other text: restore it, or choose another folder"
            )
        if found.get(name) != value:
            raise ExselError(
                f"--out {reproduction.folder} holds results with {name} {_words(found.get(name))}, not "
                f"{_words(value)}: go on with the same settings, or choose another folder"
            )
    records(reproduction)
    for run in sorted((reproduction.folder / WORK / RUNS).glob("*")):
        finished(run)


def _words(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def open_folder(reproduction: Reproduction, *, overwrite: bool) -> None:
    """Make the folder, or rid it of what was run before; no other process may be at work in it."""
    if overwrite and is_reproduction(reproduction.folder):
        for experiment in experiments.EXPERIMENTS:
            record_path(reproduction, experiment).unlink(missing_ok=True)
        for name in (WORK, PICTURES):
            if (reproduction.folder / name).exists():
                shutil.rmtree(reproduction.folder / name)
        (reproduction.folder / PAGE).unlink(missing_ok=True)
    reproduction.folder.mkdir(parents=True, exist_ok=True)
    write_json(reproduction.folder / SETTINGS, {"format": FORMAT, **reproduction.settings})


def record_path(reproduction: Reproduction, experiment: Experiment) -> Path:
    """Where an experiment's record is."""
    return reproduction.folder / f"{experiment.name}.json"


def records(reproduction: Reproduction) -> list[ExperimentRecord]:
    """Those in the folder, in the list's order.

    Raises:
        ExselError: one is damaged.
    """
    found = []
    for experiment in experiments.EXPERIMENTS:
        path = record_path(reproduction, experiment)
        if path.exists():
            record = ExperimentRecord.read(path)
            if record.experiment != experiment.name:
                raise ExselError(
                    f"{path} is a record of {record.experiment}: delete it and run {experiment.name} again"
                )
            found.append(record)
    return found


def reproduce(experiment: Experiment, reproduction: Reproduction, progress: Progress) -> ExperimentRecord:
    """Run one experiment and write its record.

    Raises:
        ExselError, ImportError: it cannot be run here.
        Stopped: by Ctrl-C or SIGTERM.
    """
    module = importlib.import_module(f"evidence.papers.{experiment.module}")
    function: Callable[[Job], Outcome] = getattr(module, experiment.function)
    folder = reproduction.folder / WORK
    folder.mkdir(exist_ok=True)
    job = Job(
        budget=reproduction.budget,
        device=reproduction.device,
        seeds=reproduction.seeds,
        data=reproduction.data,
        folder=folder,
        progress=progress,
    )
    started, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    with _stopping():
        try:
            outcome = function(job)
        except torch.OutOfMemoryError as error:
            raise ExselError(f"the {reproduction.device} ran out of memory: try a smaller --budget") from error
    record = ExperimentRecord(
        experiment=experiment.name,
        budget=reproduction.budget,
        seeds=reproduction.seeds,
        device=reproduction.device,
        data=reproduction.data,
        outcome=outcome,
        seconds=time.perf_counter() - start,
        started=started,
        machine=describe_machine(reproduction.device),
        git_revision=git_revision(),
        exsel_version=exsel.__version__,
        command=command(experiment, reproduction),
    )
    write_json(record_path(reproduction, experiment), record.to_dict())
    return record


def command(experiment: Experiment, reproduction: Reproduction) -> str:
    """What runs this experiment so again, alone and wherever it is."""
    words = ["python", "-m", "evidence", "reproduce", experiment.name, "--budget", reproduction.budget]
    if reproduction.seeds != SEEDS[reproduction.budget]:
        words += ["--seeds", ",".join(map(str, reproduction.seeds))]
    if reproduction.data:
        words += ["--data", *reproduction.data]
    return shlex.join(words)


@contextmanager
def _stopping() -> Iterator[None]:
    """Both signals as :class:`Stopped`, also where no training listens to them."""
    received: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except Interrupted as stop:
        raise Stopped(stop.signal) from None
    except KeyboardInterrupt:
        raise Stopped(received[0] if received else signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
