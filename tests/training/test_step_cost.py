from __future__ import annotations

from pathlib import Path

import pytest

from exsel.data import PackedData
from exsel.training import step_cost
from exsel.training.comparison_plan import plan_runs
from exsel.training.settings import Settings
from exsel.variants import choose_variants
from training.small_runs import small_settings

ORDER = ["baseline", "exclusive", "selective"]


@pytest.fixture
def runs(model_file: Path) -> list[Settings]:
    planned = plan_runs(
        small_settings(model_file), variants=choose_variants(ORDER), learning_rates=[1e-2], seeds=[0, 1]
    )
    return planned.runs


def test_every_variant_is_timed_in_each_round_in_turn(
    runs: list[Settings], data: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def seconds(settings: Settings, _: PackedData, count: int) -> list[float]:
        # A machine that slows down, on which exclusive attention costs a quarter more.
        timed.append(settings.variant.name)
        return [(1 + len(timed) // 3) * (1.25 if settings.variant.name == "exclusive" else 1.0)] * count

    monkeypatch.setattr(step_cost, "timed_steps", seconds)
    costs = step_cost.step_costs(runs, data)
    rounds = [timed[start : start + 3] for start in range(0, len(timed), 3)]
    assert all(sorted(each) == ORDER for each in rounds)
    assert [each[0] for each in rounds[:4]] == [*ORDER, "baseline"]
    assert {cost.rounds for cost in costs.values()} == {len(rounds)} == {step_cost.STEPS // 3}
    ratio = costs["baseline"].ratio
    assert ratio is not None
    assert set(ratio.values) == {1.0}
    # What stands beside a ratio says the same.
    exclusive = costs["exclusive"]
    assert exclusive.ratio is not None
    assert exclusive.ratio.mean > 1.1
    assert exclusive.milliseconds == pytest.approx(costs["baseline"].milliseconds * exclusive.ratio.mean)


def test_a_step_is_timed_and_changes_nothing(runs: list[Settings], data: PackedData) -> None:
    costs = step_cost.step_costs(runs[:1], data)
    assert list(costs) == ["baseline"]
    assert costs["baseline"].milliseconds > 0


def test_without_a_baseline_there_is_no_ratio(runs: list[Settings], data: PackedData) -> None:
    (cost,) = step_cost.step_costs([run for run in runs if run.variant.name == "exclusive"], data).values()
    assert cost.ratio is None
