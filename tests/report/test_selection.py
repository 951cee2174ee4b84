"""What is said of temperatures that moved, and of those that did not."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import pytest

from exsel.report import headline, headline_note, render_report
from exsel.report.selection import HARDLY, hardly_moved, moved_temperatures, selection_notes

Make = Callable[..., dict[str, Any]]


def with_records(results: dict[str, Any], moved: float, over_tokens: float) -> dict[str, Any]:
    for run in results["runs"]:
        if "selective" in run["variant"]:
            run["temperatures"] = [
                {"module": f"layers.{layer}", "kind": kind, "mean": 1.0 + moved, "moved": scale * moved,
                 "over_tokens": over_tokens, "over_heads": 0.0}
                for layer, scale in ((0, 0.6), (1, 0.8))
                for kind in ("query", "value")
            ]  # fmt: skip
    results["recipes"] = {
        name: {"exclusive": {} if "exclusive" in name else None, "selective": {} if "selective" in name else None}
        for name in {run["variant"] for run in results["runs"]}
    }
    return results


def test_numbers_are_over_layers_and_seeds(make_results: Make) -> None:
    found = moved_temperatures(with_records(make_results(seeds=(0, 1)), 0.1, 0.02))
    assert [(each.variant, each.kind) for each in found] == [
        (variant, kind) for variant in ("selective", "exclusive+selective") for kind in ("query", "value")
    ]
    assert found[0][2:] == pytest.approx((1.1, 0.1 * 0.5**0.5, 0.02, 0.0))


def test_no_verdict_on_temperatures_that_hardly_moved(make_results: Make) -> None:
    results = make_results(variants=("baseline", "selective"), seeds=(0, 1, 2))
    assert headline(results).startswith("Better per token")
    assert selection_notes(results) == []
    with_records(results, 1.2 * HARDLY, 0.0)
    assert hardly_moved(results, "selective")
    assert headline(results) == "No verdict on selection: the temperatures of selective hardly moved."
    assert headline_note(results) == selection_notes(results)[0]
    assert "Its loss says nothing about selection." in headline_note(results)
    assert headline_note(results) in render_report(results)
    with_records(results, 2 * HARDLY, 0.0)
    assert headline(results).startswith("Better per token")
    assert "they are constants" in selection_notes(results)[0]
    with_records(results, 2 * HARDLY, HARDLY)
    assert selection_notes(results) == []
    assert str(moved_temperatures(results)[0]) == (
        "temperatures of queries: mean 1.0078, moved by 0.0055, 0.0039 from token to token"
    )


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((-0.02, -0.021, -0.019), "lowers the loss by 0.0200 ± 0.0025: that much is selection's."),
        ((0.02, 0.021, 0.019), "One constant a head does better than selective, by 0.0200 ± 0.0025"),
        ((-0.02, 0.02, 0.0), "no difference is told (0.0000 ± 0.0497)"),
    ],
)
def test_selection_is_told_apart_from_a_constant(make_results: Make, differences: tuple[float, ...], said: str) -> None:
    results = make_results(variants=("baseline", "constant", "selective"), seeds=(0, 1, 2))
    losses = {run["seed"]: run["loss"] for run in results["runs"] if run["variant"] == "constant"}
    for run in results["runs"]:
        if run["variant"] == "selective":
            run["loss"] = losses[run["seed"]] + differences[run["seed"]]
    (note,) = selection_notes(results)
    assert said in note
    assert note in html.unescape(render_report(results))
    results["runs"] = [run for run in results["runs"] if run["seed"] == 0]
    assert selection_notes(results) == []


def test_what_else_a_variant_has_is_still_judged(make_results: Make) -> None:
    results = with_records(make_results(seeds=(0, 1, 2)), 0.1 * HARDLY, 0.0)
    assert "exclusive+selective reached" in headline(results)
    assert headline_note(results).endswith("Its temperatures hardly moved: selection has no part in this.")
    alone = with_records(make_results(variants=("baseline", "exclusive", "selective"), seeds=(0, 1, 2)), 0.0, 0.0)
    assert "exclusive reached" in headline(alone)
    assert "hardly moved" not in headline_note(alone)


def test_a_page_without_records_has_no_such_section(make_results: Make) -> None:
    assert "temperatures-table" in render_report(make_results())
    assert "temperatures-table" not in render_report(make_results(variants=("baseline", "exclusive")))
    assert selection_notes({"runs": [{"variant": "a", "temperatures": [{"kind": 1}, None]}]}) == []
