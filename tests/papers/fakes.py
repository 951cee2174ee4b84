"""Made-up experiments in the list's place, and records of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from evidence.papers import experiments
from evidence.papers.experiments import READERS, XSA, Experiment
from evidence.papers.outcome import (
    Budget,
    Estimate,
    ExperimentRecord,
    Finding,
    Job,
    Outcome,
    Table,
    Verdict,
    _typed,
)
from exsel.cli.display import RunLines
from exsel.report.charts import Chart, Curve

FIRST = Experiment("first-one", XSA, "Figure 1", "The first, with a comma", "It is so.", "fakes")
SECOND = Experiment("second", XSA, "Table 2", "The second", "It is so too.", "fakes")
QUESTION = Experiment("question", READERS, "", "Is it so?", "Is it?", "fakes")

Run = Callable[[Job], Outcome]


def read_again(outcome: Outcome) -> Outcome:
    """As a record's file gives it back."""
    found: Outcome = _typed(Outcome, json.loads(json.dumps(outcome.to_dict(), allow_nan=False)), "outcome")
    return found


def smoke_job(folder: Path, seeds: tuple[int, ...] = (0,)) -> Job:
    return Job(budget="smoke", device="cpu", seeds=seeds, data=(), folder=folder, progress=RunLines())


def make_outcome(verdict: Verdict = "reproduced", *, values: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Outcome:
    return Outcome(
        verdict=verdict,
        conclusion="So it is.",
        size="2 layers | 3 tokens",
        findings=(
            Finding(quantity="gain | loss", ours=Estimate.of(*values), published=1.5, expected="above 0", holds=True),
            Finding(quantity="residue", ours=Estimate.of(-3e-9), holds=False),
            Finding(quantity="count", ours=Estimate.of(12345.0), published=12345.0, digits=0),
        ),
        charts=(
            Chart(
                name="line",
                title="A line",
                x_label="tokens",
                y_label="loss",
                curves=(Curve(label="baseline", x=(1.0, 2.0), y=(3.0, 2.0), low=(2.5, 1.5), high=(3.5, 2.5)),),
                caption="It falls.",
            ),
        ),
        tables=(Table(title="More", headings=("a", "b"), rows=(("1", "2|3"),)),),
    )


def make_record(
    experiment: Experiment, outcome: Outcome, *, budget: Budget = "cpu", seeds: int = 3
) -> ExperimentRecord:
    return ExperimentRecord(
        experiment=experiment.name,
        budget=budget,
        seeds=tuple(range(seeds)),
        device="cpu",
        data=(),
        outcome=outcome,
        seconds=12.3,
        started="2026-11-22T08:00:00+00:00",
        machine={"cores": 2, "processor": "a chip", "device": "cpu", "torch": "2.13.0", "transformers": "5.23.0"},
        git_revision="0123456789abcdef+",
        exsel_version="0.1.0",
        command=f"python -m evidence reproduce {experiment.name} --budget {budget}",
    )


def install(monkeypatch: pytest.MonkeyPatch, *, first: Run, second: Run, question: Run) -> None:
    """Put the three into the list, with what runs them."""
    module = ModuleType("evidence.papers.fakes")
    functions = {FIRST.function: first, SECOND.function: second, QUESTION.function: question}
    for name, function in functions.items():
        monkeypatch.setattr(module, name, function, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(experiments, "EXPERIMENTS", (FIRST, SECOND, QUESTION))
