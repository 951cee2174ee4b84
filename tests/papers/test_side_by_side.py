from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evidence.papers import side_by_side
from evidence.papers.comparing import Comparison
from evidence.papers.experiments import EXPERIMENTS
from evidence.papers.model_variants import BASELINE
from evidence.papers.outcome import BUDGETS, Budget, Job, Outcome
from papers.fakes import read_again
from papers.trainings import invent, make_job

RUNS: dict[str, Callable[[Job], Outcome]] = {
    experiment.name: getattr(side_by_side, experiment.function)
    for experiment in EXPERIMENTS
    if experiment.module == "side_by_side"
}
each_experiment = pytest.mark.parametrize("name", RUNS)


@each_experiment
@pytest.mark.parametrize("budget", BUDGETS)
def test_plans_are_sound(name: str, budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Comparison] = []
    monkeypatch.setattr(side_by_side, "run_comparison", lambda job, comparison: plans.append(comparison))
    job = make_job(tmp_path)
    RUNS[name](Job(**{**vars(job), "budget": budget}))
    (comparison,) = plans
    for contrast in comparison.contrasts:
        assert sum(factor for factor, _ in contrast.terms) == 0
    assert len({contrast.quantity for contrast in comparison.contrasts}) == len(comparison.contrasts)
    assert any(contrast.sign for contrast in comparison.contrasts)
    assert len({variant.label for variant in comparison.variants}) == len(comparison.variants)
    assert comparison.drawn[0] is BASELINE
    assert set(comparison.timed) <= set(comparison.drawn)


def run(name: str, losses: dict[str, float], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Outcome:
    trainings = invent(monkeypatch, losses)
    found = RUNS[name](make_job(folder, seeds=(0, 1, 2)))
    # Those of a seed follow one another, the baseline first, and nothing is trained twice.
    assert trainings[0] == "baseline"
    assert len(set(trainings)) * 3 == len(trainings)
    assert trainings[: len(trainings) // 3] == trainings[-len(trainings) // 3 :]
    return found


VERDICTS: list[tuple[str, dict[str, float], str]] = [
    ("training", {"exclusive": 1.9}, "reproduced"),
    ("training", {"exclusive": 2.1}, "not reproduced"),
    ("sinks", {"exclusive": 1.9, "sinks-1-exclusive": 1.9, "sinks-4-exclusive": 1.9}, "reproduced"),
    ("sinks", {"exclusive": 1.9, "sinks-1-exclusive": 2.1, "sinks-4-exclusive": 2.1}, "partly"),
    ("speed-up", {"selective": 1.9}, "reproduced"),
    ("strength", {"exclusive": 1.9, "learned-strength": 1.95}, "not reproduced"),
    ("strength", {"exclusive": 1.9, "learned-strength": 1.8}, "reproduced"),
    ("diagonal", {"exclusive": 1.9, "masked-diagonal": 1.95}, "reproduced"),
    ("redundancy", {"exclusive": 1.9, "output-gate-exclusive": 1.9, "sinks-4-exclusive": 1.95}, "reproduced"),
    ("redundancy", {"exclusive": 1.9, "output-gate-exclusive": 2.1, "sinks-4-exclusive": 2.1}, "not reproduced"),
    ("together", {"exclusive": 1.9, "selective": 1.95, "exclusive-selective": 1.87}, "reproduced"),
    ("common-direction", {"exclusive": 1.9, "common-direction": 2.1}, "not reproduced"),
    ("common-direction", {"exclusive": 1.95, "common-direction": 1.9}, "reproduced"),
]


@pytest.mark.parametrize(("name", "losses", "expected"), VERDICTS)
def test_verdicts_follow_from_the_losses(
    name: str, losses: dict[str, float], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(name, losses, monkeypatch, tmp_path).verdict == expected


def test_both_gains_are_compared_with_their_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"exclusive": 1.9, "selective": 1.95, "exclusive-selective": 1.87}
    found = run("together", losses, monkeypatch, tmp_path)
    beyond = found.findings[5]
    assert "the sum of the two gains" in beyond.quantity
    assert beyond.ours.mean == pytest.approx(0.13 - 0.15, abs=1e-3)
    assert "Less than the sum" in found.conclusion


def test_the_change_of_the_gain_beside_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"exclusive": 1.9, "output-gate": 1.8, "output-gate-exclusive": 1.76, "sinks-4-exclusive": 1.9}
    found = run("redundancy", losses, monkeypatch, tmp_path)
    change = next(
        finding for finding in found.findings if finding.quantity.startswith("change") and "gate" in finding.quantity
    )
    assert change.ours.mean == pytest.approx(0.04 - 0.1, abs=2e-3)
    assert "The gain of exclusive attention is smaller: with an output gate" in found.conclusion


def test_an_experiment_that_trains_indeed(tmp_path: Path) -> None:
    found = side_by_side.run_redundancy(make_job(tmp_path, seeds=(0,)))
    assert found.verdict == "unclear"
    assert [row[0] for row in found.tables[0].rows] == [
        "baseline",
        "exclusive",
        "output gate",
        "4 sinks",
        "output gate + exclusive",
        "4 sinks + exclusive",
    ]


@pytest.mark.slow
def test_every_experiment_at_the_smallest_budget(tmp_path: Path) -> None:
    job = make_job(tmp_path, seeds=(0, 1))
    outcomes: dict[str, Any] = {name: function(job) for name, function in RUNS.items()}
    for name, found in outcomes.items():
        assert read_again(found) == found, name
        assert found.conclusion
