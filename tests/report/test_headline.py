from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exsel.intervals import Estimate
from exsel.report import headline, headline_note

Make = Callable[..., dict[str, Any]]


def pair(make_results: Make, **options: Any) -> dict[str, Any]:
    return make_results(variants=("baseline", "exclusive"), **options)


SEEDS = (0, 1, 2)


def estimate(mean: float, margin: float, seeds: int = 3) -> dict[str, Any]:
    return {"mean": mean, "low": mean - margin, "high": mean + margin, "values": [mean] * seeds}


def test_better_both_ways(make_results: Make) -> None:
    results = pair(make_results, seeds=SEEDS)
    assert headline(results) == (
        "Better per token and per second: exclusive reached the baseline's final loss in 0.34× the tokens and "
        "0.35× the time."
    )
    reach = results["variants"][1]["reach"]
    tokens, time = reach["tokens_ratio"], reach["time_ratio"]
    difference = results["variants"][1]["difference"]
    assert headline_note(results) == (
        f"Final loss 1.66 against 1.96 (−0.31 ± {difference['high'] - difference['mean']:.2f} over 3 seeds). "
        f"Tokens 0.34× ({tokens['low']:.2f} to {tokens['high']:.2f}), "
        f"time 0.35× ({time['low']:.2f} to {time['high']:.2f})."
    )


def test_one_seed_tells_no_difference(make_results: Make) -> None:
    results = pair(make_results)
    assert headline(results) == (
        "One seed tells no difference: exclusive ended at a loss of 1.67, the baseline at 1.97."
    )
    assert "--seeds 0,1,2" in headline_note(results)


def test_the_time_is_claimed_only_where_its_interval_leaves_out_no_difference(make_results: Make) -> None:
    results = pair(make_results, seeds=SEEDS)
    reach = results["variants"][1]["reach"]
    reach["time_ratio"] = estimate(1.07, 0.05)
    assert headline(results).startswith("Better per token, not per second: exclusive reached")
    assert headline(results).endswith("in 0.34× the tokens but 1.07× the time.")
    for unclear in (estimate(0.75, 0.3), estimate(1.07, 0.08)):
        reach["time_ratio"] = unclear
        assert headline(results).startswith("Better per token: exclusive reached")
        assert headline(results).endswith("per second nothing is told.")
        assert headline_note(results).endswith("More seeds would tell the time.")
    reach["time_ratio"] = None
    assert headline(results).endswith("its time is not known.")
    reach["tokens_ratio"] = estimate(0.9, 0.2)
    assert headline(results) == "Better per token: exclusive ended at a lower loss than the baseline."
    results["variants"][1]["reach"] = None
    assert headline(results) == "Better per token: exclusive ended at a lower loss than the baseline."
    assert headline_note(results).startswith("Final loss 1.66 against 1.96")


def test_worse_is_claimed_only_where_the_intervals_tell(make_results: Make) -> None:
    results = pair(make_results, final={"exclusive": 2.05}, seeds=SEEDS)
    assert headline(results) == "exclusive did not beat the baseline."
    worse = make_results(final={"exclusive": 2.1, "selective": 2.05, "exclusive+selective": 2.2}, seeds=SEEDS)
    assert headline(worse) == "No variant beat the baseline; closest was selective."
    worse["variants"][1]["difference"] = estimate(0.15, 0.2)
    assert headline(worse).startswith("No difference is told: exclusive ended at")


def test_a_difference_within_its_interval_is_not_told(make_results: Make) -> None:
    results = pair(make_results, seeds=SEEDS)
    baseline, exclusive = results["variants"]
    baseline["loss"] = Estimate.of(1.94, 1.95, 1.96).to_dict()
    exclusive["loss"] = Estimate.of(1.945, 1.915, 1.954).to_dict()
    exclusive["difference"] = Estimate.of(0.005, -0.035, -0.006).to_dict()
    assert headline(results) == "No difference is told: exclusive ended at a loss of 1.938, the baseline at 1.950."
    assert headline_note(results) == (
        "The difference is −0.012, its 95% interval over 3 seeds −0.063 to +0.039. If it is real, about 15 seeds would "
        "tell it."
    )
    exclusive["difference"] = Estimate.of(0.005, -0.005, 0.0001).to_dict()
    assert headline_note(results).endswith("takes over a hundred seeds to tell, or more steps to grow.")


def test_short_trainings_are_called_so(make_results: Make) -> None:
    results = pair(make_results, seeds=SEEDS)
    for run in results["runs"]:
        run["validation_curve"] = run["validation_curve"][-3:]
    assert headline(results) == "Too short to conclude from: the loss was evaluated 3 times, and it takes 5."
    assert headline_note(results).startswith("Final loss 1.66 against 1.96")
    for run in results["runs"]:
        run["validation_curve"] = [{"loss": 5 - 0.1 * step, "tokens": step, "seconds": step} for step in range(9)]
    assert headline(results) == "Too short to conclude from: the loss still falls about as fast as at the start."


def test_a_new_model_needs_some_steps(make_results: Make) -> None:
    results = make_results()
    verdict = headline(results)
    results["config"] |= {"steps": 45, "source": None}
    assert headline(results) == "Too short to conclude from: a new model needs 100 steps at least, and these took 45."
    results["config"]["source"] = "smollm2"  # fine-tuning takes fewer
    assert headline(results) == verdict


def test_without_a_baseline_nothing_is_called_better(make_results: Make) -> None:
    results = make_results(variants=("exclusive", "selective"))
    assert headline(results) == "No baseline to compare with; the lowest final loss is that of exclusive: 1.67."
    assert headline_note(results) == "One seed: no interval."
    results = make_results(variants=("selective",))
    assert headline(results) == "No baseline to compare with: selective ended at a validation loss of 1.84."
    assert headline_note(results) == "One seed: no interval."


def test_the_baseline_alone_and_nothing_at_all(make_results: Make) -> None:
    results = make_results(variants=("baseline",))
    assert headline(results) == "Only the baseline has a final loss: 1.97."
    assert headline_note(results) == "One seed: no interval."
    assert headline({}) == "The results hold no final loss, so nothing can be compared."


def test_a_sweep_compares_each_variant_at_its_chosen_rate(make_results: Make) -> None:
    results = pair(make_results, rates=(1e-3, 3e-3), seeds=SEEDS)
    assert headline_note(results).startswith("Final loss 1.66 against 1.96 (−0.31 ± ")
    results["variants"][0]["learning_rate"] = 1e-3
    assert "Final loss 1.66 at learning rate 3e-3 against 1.96 at 1e-3, each at its best (−0.31 ± " in headline_note(
        results
    )


def test_a_diverged_variant_is_left_out(make_results: Make) -> None:
    results = make_results(variants=("baseline", "exclusive", "selective"), seeds=SEEDS)
    results["variants"][1]["loss"]["mean"] = float("nan")
    assert "selective reached" in headline(results)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seeds": (0, 1, 2)},
        {"rates": (1e-3, 3e-3)},
        {"final": {"exclusive": 2.1, "selective": 2.05, "exclusive+selective": 2.2}},
        {"final": {"exclusive": 1.9501, "selective": 2.05, "exclusive+selective": 2.2}, "seeds": (0, 1, 2)},
        {"variants": ("baseline",)},
        {"variants": ("exclusive",)},
        {"variants": ("exclusive", "selective")},
        {"variants": ("baseline", "selective"), "seeds": (0, 1)},
    ],
)
def test_a_headline_is_one_sentence_of_at_most_twenty_words(make_results: Make, options: dict[str, Any]) -> None:
    results = make_results(**options)
    for time_ratio in (0.5, 1.0, 1.5):
        for row in results["variants"]:
            if row["reach"]:
                row["reach"]["time_ratio"] = estimate(time_ratio, 0.1)
        sentence = headline(results)
        assert len(sentence.split()) <= 20
        assert sentence.endswith(".")
        assert ". " not in sentence
