from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exsel.report import headline, headline_note

Make = Callable[..., dict[str, Any]]


def pair(make_results: Make, **options: Any) -> dict[str, Any]:
    return make_results(variants=("baseline", "exclusive"), **options)


def test_better_both_ways_with_one_seed(make_results: Make) -> None:
    assert headline(pair(make_results)) == (
        "Better per token and per second: exclusive reached the baseline's final loss in 0.35× the tokens and "
        "0.36× the time."
    )
    assert headline_note(pair(make_results)) == "Final loss 1.67 against 1.97 (−0.30; one seed: no spread)."


def test_the_spread_is_told_with_several_seeds(make_results: Make) -> None:
    results = pair(make_results, seeds=(0, 1, 2))
    spread = results["variants"][1]["difference"]["spread"]
    assert headline_note(results).endswith(f"Final loss 1.66 against 1.96 (−0.31 ± {spread:.2f} over 3 seeds).")


def test_better_per_token_alone(make_results: Make) -> None:
    results = pair(make_results)
    results["variants"][1]["reach"]["seconds_ratio"] = 1.07
    assert headline(results).startswith(
        "Better per token, not per second: exclusive reached the baseline's final loss in 0.35× the tokens but "
        "1.07× the time."
    )
    results["variants"][1]["reach"]["seconds_ratio"] = 1.003
    assert headline(results).startswith("Better per token, level per second: ")
    results["variants"][1]["reach"]["seconds_ratio"] = 0.998
    assert headline(results).startswith("Better per token, level per second: ")
    results["variants"][1]["reach"] = None
    assert headline(results).startswith("Better per token: exclusive ended at a lower loss than the baseline.")
    assert headline_note(results).startswith("Final loss 1.67 against 1.97")


def test_the_quickest_variant_is_named_when_it_is_another(make_results: Make) -> None:
    sentence = headline(make_results())
    assert sentence.startswith("Better per token and per second: exclusive+selective reached")
    assert headline_note(make_results()).endswith("Quickest to that loss was exclusive, in 0.36× the time.")


def test_nothing_better(make_results: Make) -> None:
    results = pair(make_results, final={"exclusive": 1.99})
    assert headline(results) == "exclusive did not beat the baseline."
    assert headline_note(results) == "Final loss 1.998 against 1.970 (+0.028; one seed: no spread)."
    worse = {"exclusive": 2.1, "selective": 2.05, "exclusive+selective": 2.2}
    assert headline(make_results(final=worse)).startswith("No variant beat the baseline; closest was selective.")


def test_a_difference_within_its_spread_is_no_difference(make_results: Make) -> None:
    results = pair(make_results, seeds=(0, 1, 2))
    baseline, exclusive = results["variants"]
    baseline["loss"] = {"mean": 1.950, "spread": 0.01, "values": [1.94, 1.95, 1.96]}
    exclusive["loss"] = {"mean": 1.938, "spread": 0.02, "values": [1.945, 1.915, 1.954]}
    exclusive["difference"] = {"mean": -0.012, "spread": 0.021, "values": [0.005, -0.035, -0.006]}
    assert headline(results) == ("No clear difference: exclusive ended at a loss of 1.938, the baseline at 1.950.")
    assert headline_note(results) == ("The difference (−0.012) is no larger than its spread (± 0.021 over 3 seeds).")
    exclusive["difference"]["spread"] = 0.011
    assert headline(results).startswith("Better per token and per second: ")


def test_without_a_baseline_nothing_is_called_better(make_results: Make) -> None:
    results = make_results(variants=("exclusive", "selective"))
    assert headline(results) == "No baseline to compare with; the lowest final loss is that of exclusive: 1.67."
    assert headline_note(results) == "One seed: no spread."
    results = make_results(variants=("selective",))
    assert headline(results) == "No baseline to compare with: selective ended at a validation loss of 1.84."
    assert headline_note(results) == "One seed: no spread."


def test_the_baseline_alone_and_nothing_at_all(make_results: Make) -> None:
    results = make_results(variants=("baseline",))
    assert headline(results) == "Only the baseline has a final loss: 1.97."
    assert headline_note(results) == "One seed: no spread."
    assert headline({}) == "The results hold no final loss, so nothing can be compared."


def test_a_sweep_compares_each_variant_at_its_best_rate(make_results: Make) -> None:
    results = pair(make_results, rates=(1e-3, 3e-3))
    assert "Final loss 1.67 against 1.97 (−0.30; one seed: no spread)" in headline_note(results)
    for row in results["variants"]:
        if row["variant"] == "baseline":
            row["best"] = row["learning_rate"] == 1e-3
    assert headline_note(results) == (
        "Final loss 1.67 at learning rate 3e-3 against 2.09 at 1e-3, each at its best; one seed: no spread. "
        "Tokens and time are to the final loss of the baseline at the same learning rate."
    )


def test_a_diverged_variant_is_left_out(make_results: Make) -> None:
    results = make_results(variants=("baseline", "exclusive", "selective"))
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
    for seconds_ratio in (0.5, 1.0, 1.5):
        for row in results["variants"]:
            if row["reach"]:
                row["reach"]["seconds_ratio"] = seconds_ratio
        sentence = headline(results)
        assert len(sentence.split()) <= 20
        assert sentence.endswith(".")
        assert ". " not in sentence
