from __future__ import annotations

import math
from typing import Any

import pytest

from exsel.intervals import Estimate
from exsel.training.summary import StepCost, reach, summarise, summarise_sweep


def run(variant: str, losses: list[float], *, seed: int = 0, rate: float = 1e-3, **changes: Any) -> dict[str, Any]:
    """A run that validates every 100 tokens, a step of 1 s a 10 tokens."""
    curve = [
        {"step": 10 * index, "tokens": 100 * index, "seconds": 10.0 * index, "loss": loss}
        for index, loss in enumerate(losses, start=1)
    ]
    return {
        "variant": variant,
        "seed": seed,
        "learning_rate": rate,
        "parameters": 1000,
        "new_parameters": 0,
        "loss": losses[-1],
        "bits_per_byte": 2 * losses[-1],
        "tokens": 100 * len(losses),
        "train_seconds": 10.0 * len(losses),
        "ms_per_step": 1000.0,
        "ms_per_step_spread": 5.0,
        "peak_memory_bytes": 7,
        "validation_curve": curve,
        **changes,
    }


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (3.0, (100.0, 10.0)),  # at the first point
        (3.5, (100.0, 10.0)),  # before it: no earlier point to draw a line from
        (2.0, (200.0, 20.0)),  # at a point
        (1.5, (250.0, 25.0)),  # halfway between two
        (1.25, (275.0, 27.5)),
        (0.9, None),
    ],
)
def test_reach_between_points(loss: float, expected: tuple[float, float] | None) -> None:
    assert reach(run("baseline", [3.0, 2.0, 1.0])["validation_curve"], loss) == expected


def test_reach_is_the_first_time_of_a_curve_that_rises_again() -> None:
    assert reach(run("baseline", [3.0, 1.0, 2.0, 1.0])["validation_curve"], 1.5) == (175.0, 17.5)


def test_reach_of_a_flat_curve() -> None:
    assert reach(run("baseline", [2.0, 2.0])["validation_curve"], 2.0) == (100.0, 10.0)
    assert reach([], 2.0) is None


COST = {
    "baseline": StepCost(milliseconds=100.0, ratio=Estimate.of_ratios(1.0, 1.0), rounds=2),
    "exclusive": StepCost(milliseconds=150.0, ratio=Estimate.of_ratios(1.4, 1.6), rounds=2),
}


def interval(content: dict[str, Any]) -> tuple[float, float]:
    return content["low"], content["high"]


def test_one_seed() -> None:
    baseline, exclusive = summarise(
        [
            run("baseline", [3.0, 2.0, 1.0]),
            run("exclusive", [2.0, 1.0, 0.5], parameters=1010, new_parameters=10),
        ],
        10,
        COST,
    )
    assert (baseline["variant"], exclusive["variant"]) == ("baseline", "exclusive")
    assert baseline["difference"] is None
    assert baseline["reach"] is None
    assert exclusive["difference"] == {"mean": -0.5, "low": None, "high": None, "values": [-0.5]}
    reached = exclusive["reach"]
    assert (reached["loss"], reached["tokens"], reached["wall_clock_seconds"]) == (1.0, 200.0, 20.0)
    assert reached["tokens_ratio"]["mean"] == pytest.approx(2 / 3)
    # 20 steps at 150 ms, whatever the trainings took; without a second seed without an interval.
    assert reached["seconds"] == pytest.approx(3.0)
    assert reached["time_ratio"]["mean"] == pytest.approx(2 / 3 * math.sqrt(1.4 * 1.6))
    assert interval(reached["time_ratio"]) == (None, None)
    assert exclusive["new_parameters_percent"] == pytest.approx(1.0)
    assert exclusive["step_cost"] == COST["exclusive"].to_dict()


def test_seeds_are_compared_pair_by_pair() -> None:
    baseline, exclusive = summarise(
        [
            run("baseline", [3.0, 1.0], seed=0),
            run("baseline", [3.0, 2.0], seed=1),
            # In another order: paired by seed, not by place.
            run("exclusive", [2.0, 1.5], seed=1),
            run("exclusive", [2.0, 0.8], seed=0),
        ],
        10,
        COST,
    )
    assert baseline["loss"] == Estimate.of(1.0, 2.0).to_dict()
    assert exclusive["difference"] == Estimate.of(1.5 - 2.0, 0.8 - 1.0).to_dict()
    # Seed 0 reaches 1.0 after 2 / 2.4 of the second hundred, seed 1 reaches 2.0 at its first point.
    reached = exclusive["reach"]
    tokens = Estimate.of_ratios((100 + 100 / 1.2) / 200, 100 / 200)
    assert reached["tokens"] == pytest.approx((100 + 100 / 1.2 + 100) / 2)
    assert reached["tokens_ratio"]["mean"] == pytest.approx(tokens.mean)
    assert interval(reached["tokens_ratio"]) == pytest.approx((tokens.low, tokens.high))
    assert reached["loss"] == 1.5
    # The time's interval is wider than the tokens' by the doubt about a step's cost, on both sides by as much.
    time = reached["time_ratio"]
    assert time["high"] / time["mean"] == pytest.approx(time["mean"] / time["low"])
    assert time["high"] / time["mean"] > tokens.high / tokens.mean  # type: ignore[operator]


def test_without_the_cost_of_a_step_there_is_no_time() -> None:
    _, exclusive = summarise([run("baseline", [3.0, 1.0]), run("exclusive", [2.0, 0.5])], 10)
    assert exclusive["step_cost"] is None
    assert exclusive["reach"]["time_ratio"] is None
    assert exclusive["reach"]["wall_clock_ratio"]["mean"] > 0


def test_not_reached_by_one_seed_is_not_reached() -> None:
    _, exclusive = summarise(
        [
            run("baseline", [3.0, 1.0], seed=0),
            run("baseline", [3.0, 1.0], seed=1),
            run("exclusive", [2.0, 0.5], seed=0),
            run("exclusive", [2.0, 1.5], seed=1),
        ],
        10,
    )
    assert exclusive["reach"] is None
    assert exclusive["difference"]["mean"] == 0.0


def test_without_a_baseline_there_is_no_difference() -> None:
    (row,) = summarise([run("selective", [2.0, 1.0])], 10)
    assert row["difference"] is None
    assert row["reach"] is None
    assert row["loss"]["mean"] == 1.0


def test_a_seed_without_a_baseline_is_left_out_of_the_difference() -> None:
    _, exclusive = summarise(
        [
            run("baseline", [3.0, 1.0], seed=0),
            run("exclusive", [2.0, 0.5], seed=0),
            run("exclusive", [9.0, 9.0], seed=1),
        ],
        10,
    )
    assert exclusive["difference"]["values"] == [-0.5]
    assert len(exclusive["loss"]["values"]) == 2


def test_a_sweep_chooses_the_rate_of_the_lowest_mean_loss_and_says_where_it_lies() -> None:
    losses = {("baseline", 1e-3): [1.0, 3.0], ("baseline", 3e-3): [1.5, 1.5], ("baseline", 1e-2): [4.0, 4.0],
              ("exclusive", 1e-3): [2.0, 2.0], ("exclusive", 3e-3): [1.0, 1.0]}  # fmt: skip
    rows = summarise_sweep(
        [
            run(variant, [each], rate=rate, seed=seed)
            for (variant, rate), both in losses.items()
            for seed, each in enumerate(both)
        ]
    )
    assert [(row["variant"], row["learning_rate"], row["chosen"], row["end"]) for row in rows] == [
        ("baseline", 1e-3, False, "lowest"),
        ("baseline", 3e-3, True, None),
        ("baseline", 1e-2, False, "highest"),
        ("exclusive", 1e-3, False, "lowest"),
        ("exclusive", 3e-3, True, "highest"),
    ]
    assert rows[0]["loss"] == Estimate.of(1.0, 3.0).to_dict()


def test_positions_and_other_texts_are_compared_seed_by_seed() -> None:
    def with_parts(variant: str, seed: int, losses: list[float], *, first: int = 1) -> dict[str, Any]:
        buckets = [{"first": first, "last": 1, "loss": losses[0]}, {"first": 2, "last": 3, "loss": losses[1]}]
        other = {"other": {"loss": losses[0], "bits_per_byte": losses[0] / 2, "by_position": buckets[1:]}}
        longer = {"by_position": buckets[:1]}
        return run(variant, losses, seed=seed, by_position=buckets, longer=longer, evaluation_sets=other)

    runs = [
        with_parts("baseline", 0, [3.0, 2.0]),
        with_parts("baseline", 1, [3.5, 2.5]),
        with_parts("exclusive", 0, [2.0, 1.8]),
        with_parts("exclusive", 1, [2.25, 2.2]),
    ]
    baseline, exclusive = summarise(runs, 10)
    assert baseline["by_position"][1] == {
        "first": 2, "last": 3, "loss": Estimate.of(2.0, 2.5).to_dict(), "difference": None,
    }  # fmt: skip
    assert exclusive["by_position"][1]["difference"] == Estimate.of(1.8 - 2.0, 2.2 - 2.5).to_dict()
    assert [bucket["difference"] for bucket in exclusive["longer"]] == [Estimate.of(-1.0, -1.25).to_dict()]
    assert exclusive["evaluation_sets"]["other"] == {
        "loss": Estimate.of(2.0, 2.25).to_dict(),
        "bits_per_byte": Estimate.of(1.0, 1.125).to_dict(),
        "difference": Estimate.of(-1.0, -1.25).to_dict(),
        "by_position": exclusive["by_position"][1:],
    }
    # A seed that was evaluated elsewhere belongs to no mean.
    runs[1] = with_parts("baseline", 1, [3.5, 2.5], first=0)
    assert [row["by_position"] for row in summarise(runs, 10)] == [[], []]
