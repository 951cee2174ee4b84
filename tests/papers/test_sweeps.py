from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evidence.papers import comparing, sweeps
from evidence.papers.model_variants import ModelVariant
from evidence.papers.outcome import Job
from papers.fakes import read_again
from papers.trainings import invented, make_job


def invent(monkeypatch: pytest.MonkeyPatch, gain_at: dict[float, float], by: str) -> list[float]:
    """Trainings in which exclusive attention gains so much at each place."""
    places: list[float] = []

    def train(job: Job, variant: ModelVariant, *, seed: int, **changes: Any) -> Any:
        place = changes[by]
        places.append(place)
        gain = gain_at[place] + 0.001 * seed if variant.name == "exclusive" else 0.0
        return SimpleNamespace(result=invented(2.0 + 0.1 * seed - gain))

    monkeypatch.setattr(comparing, "train_variant", train)
    return places


def test_the_slope_of_a_line() -> None:
    assert sweeps.slope([16, 32, 64, 128], [0.5, 0.75, 1.0, 1.25]) == pytest.approx(0.25)
    assert sweeps.slope([1e-3, 4e-3], [1.0, 0.0]) == pytest.approx(-0.5)
    # By hand: x = 0, 1, 2 and y = 0, 0, 3 give Σ(x − 1)(y − 1) / Σ(x − 1)² = 3 / 2.
    assert sweeps.slope([1, 2, 4], [0.0, 0.0, 3.0]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("gains", "verdict", "said"),
    [
        ((0.01, 0.05, 0.09), "reproduced", "The gain grows: +0.0400 nats"),
        ((0.09, 0.05, 0.01), "not reproduced", "The gain shrinks: −0.0400 nats"),
    ],
)
def test_the_gain_by_length(
    gains: tuple[float, ...], verdict: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = invent(monkeypatch, dict(zip((16, 32, 64), gains, strict=True)), "seq_len")
    found = sweeps.run_length(make_job(tmp_path, seeds=(0, 1, 2)))
    assert sorted(set(places)) == [16, 32, 64]
    assert found.verdict == verdict
    assert said in found.conclusion
    # The same slope with every seed: rounding alone is between them.
    assert found.findings[0].ours.values == pytest.approx(((gains[2] - gains[0]) / 2,) * 3)
    assert found.charts[0].curves[0].x == (16, 32, 64)
    assert read_again(found) == found


def test_the_gain_by_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = sweeps.SIZES["smoke"].learning_rate
    gains = {tuned / 4: 0.1, tuned / 2: 0.1, tuned: 0.1, tuned * 1.5: -0.1}
    invent(monkeypatch, gains, "learning_rate")
    found = sweeps.run_learning_rate(make_job(tmp_path, seeds=(0, 1, 2)))
    assert found.verdict == "partly"
    assert [finding.holds for finding in found.findings] == [True, True, True, False, None]
    assert "better at 3 of 4 places, worse at 1" in found.conclusion
    assert [row[0] for row in found.tables[0].rows] == ["0.00075", "0.0015", "0.003", "0.0045"]


def test_a_sweep_that_trains_indeed(tmp_path: Path) -> None:
    found = sweeps.run_length(make_job(tmp_path, seeds=(0,)))
    assert found.verdict == "unclear"
    assert len(found.tables[0].rows) == 3


@pytest.mark.slow
def test_the_learning_rates_at_the_smallest_budget(tmp_path: Path) -> None:
    found = sweeps.run_learning_rate(make_job(tmp_path, seeds=(0, 1)))
    assert len(found.findings) == 5
