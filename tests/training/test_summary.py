from __future__ import annotations

from typing import Any

import pytest

from exsel.training.summary import reach, summarise


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


def test_one_seed() -> None:
    baseline, exclusive = summarise(
        [
            run("baseline", [3.0, 2.0, 1.0]),
            run("exclusive", [2.0, 1.0, 0.5], parameters=1010, new_parameters=10, ms_per_step=2000.0),
        ],
        tokens_per_step=10,
    )
    assert (baseline["variant"], exclusive["variant"]) == ("baseline", "exclusive")
    assert baseline["difference"] is None
    assert baseline["reach"] is None
    assert exclusive["difference"] == {"mean": -0.5, "spread": None, "values": [-0.5]}
    assert exclusive["reach"] == pytest.approx(
        {"loss": 1.0, "tokens": 200.0, "seconds": 20.0, "tokens_ratio": 2 / 3, "seconds_ratio": 2 / 3}
    )
    assert exclusive["new_parameters_percent"] == pytest.approx(1.0)
    assert (baseline["tokens_per_second"], exclusive["tokens_per_second"]) == (10.0, 5.0)
    assert exclusive["ms_per_step"] == {"median": 2000.0, "spread": 5.0}


def test_seeds_are_compared_pair_by_pair() -> None:
    baseline, exclusive = summarise(
        [
            run("baseline", [3.0, 1.0], seed=0),
            run("baseline", [3.0, 2.0], seed=1),
            # In another order: paired by seed, not by place.
            run("exclusive", [2.0, 1.5], seed=1),
            run("exclusive", [1.0, 0.8], seed=0),
        ],
        tokens_per_step=10,
    )
    assert baseline["loss"]["mean"] == 1.5
    assert baseline["loss"]["spread"] == pytest.approx(0.5**0.5)
    assert exclusive["difference"]["mean"] == pytest.approx(-0.35)
    assert exclusive["difference"]["spread"] == pytest.approx(0.3 / 2**0.5)
    # Seed 0 reaches 1.0 at its first point, seed 1 reaches 2.0 at its first point.
    assert exclusive["reach"]["tokens"] == 100.0
    assert exclusive["reach"]["seconds_ratio"] == 0.5
    assert exclusive["reach"]["loss"] == 1.5


def test_not_reached_by_one_seed_is_not_reached() -> None:
    _, exclusive = summarise(
        [
            run("baseline", [3.0, 1.0], seed=0),
            run("baseline", [3.0, 1.0], seed=1),
            run("exclusive", [2.0, 0.5], seed=0),
            run("exclusive", [2.0, 1.5], seed=1),
        ],
        tokens_per_step=10,
    )
    assert exclusive["reach"] is None
    assert exclusive["difference"]["mean"] == 0.0


def test_without_a_baseline_there_is_no_difference() -> None:
    (row,) = summarise([run("selective", [2.0, 1.0])], tokens_per_step=10)
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
        tokens_per_step=10,
    )
    assert exclusive["difference"]["values"] == [-0.5]
    assert len(exclusive["loss"]["values"]) == 2


def test_a_sweep_compares_within_a_learning_rate_and_marks_the_best() -> None:
    rows = summarise(
        [
            run("baseline", [3.0, 1.0], rate=1e-3),
            run("baseline", [3.0, 2.0], rate=3e-3),
            run("exclusive", [2.0, 1.5], rate=1e-3),
            run("exclusive", [2.0, 0.5], rate=3e-3),
        ],
        tokens_per_step=10,
    )
    assert [(row["variant"], row["learning_rate"], row["best"]) for row in rows] == [
        ("baseline", 1e-3, True),
        ("baseline", 3e-3, False),
        ("exclusive", 1e-3, False),
        ("exclusive", 3e-3, True),
    ]
    assert [row["difference"] and row["difference"]["mean"] for row in rows] == [None, None, 0.5, -1.5]
