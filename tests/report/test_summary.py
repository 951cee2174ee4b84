from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from exsel.report import interval_sentence, summary_rows, sweep_ends, table_headings

Make = Callable[..., dict[str, Any]]


def test_one_seed_has_a_difference_without_an_interval(make_results: Make) -> None:
    results = make_results()
    rows = summary_rows(results)
    assert [row["variant"] for row in rows] == ["baseline", "exclusive", "selective", "exclusive+selective"]
    assert rows[0]["difference"] == "–"
    assert rows[1]["difference"] == "−0.3015 (one seed)"
    assert rows[1]["reach_tokens"] == "280k (0.34×)"
    assert rows[1]["new_parameters"] == "0"
    assert rows[2]["new_parameters"] == "4,608 (0.25%)"
    assert rows[1]["step_cost"] == "257 ms (1.02×, 1.01 to 1.04)"
    assert interval_sentence(results) == (
        "one seed: no interval, and no claim; a step's cost is measured apart from the trainings, its interval is over "
        "5 rounds"
    )


def test_three_seeds_show_their_intervals(make_results: Make) -> None:
    results = make_results(seeds=(0, 1, 2))
    row = summary_rows(results)[1]
    found = results["variants"][1]["difference"]
    assert row["difference"].endswith(f" ± {found['high'] - found['mean']:.4f}")
    ratio = results["variants"][1]["reach"]["time_ratio"]
    assert row["reach_time"].endswith(f"({ratio['mean']:.2f}×, {ratio['low']:.2f} to {ratio['high']:.2f})")
    assert interval_sentence(results).startswith("± and ranges are 95% intervals over 3 seeds (Student's t); ")


def test_every_cell_has_a_heading_and_the_rate_shows_only_in_a_sweep(make_results: Make) -> None:
    results = make_results(rates=(1e-3, 3e-3), texts=("news", "code"))
    row = summary_rows(results)[1]
    assert [*table_headings(results)] == [*row]
    assert table_headings(results)["on news"] == "Loss on news"
    assert row["on news"] == f"{results['variants'][1]['evaluation_sets']['news']['loss']['mean']:.4f}"
    assert [*summary_rows(make_results())[0]] == [key for key in table_headings({}) if key != "learning_rate"]


def test_a_sweep_says_which_rates_lie_at_an_end_and_with_which_seed_they_were_chosen(make_results: Make) -> None:
    results = make_results(rates=(1e-3, 3e-3), variants=("baseline", "exclusive"))
    assert [row["learning_rate"] for row in summary_rows(results)] == ["3e-3", "3e-3"]
    assert sweep_ends(results) == (
        "The best learning rate is at an end of those tried: baseline (3e-3, the highest), exclusive (3e-3, the "
        "highest). Try rates beyond it."
    )
    assert interval_sentence(results).endswith("own best learning rate, chosen with seed 1000000, which no result uses")
    assert sweep_ends(make_results(rates=(1e-3, 3e-3, 1e-2))) == sweep_ends(make_results()) == ""


def test_never_reached_differs_from_nothing_to_reach(make_results: Make) -> None:
    worse = summary_rows(make_results(variants=("baseline", "selective"), final={"selective": 2.5}))
    assert [row["reach_time"] for row in worse] == ["–", "not reached"]
    alone = summary_rows(make_results(variants=("exclusive", "selective")))
    assert [row["reach_time"] for row in alone] == ["–", "–"]


def test_missing_keys_are_dashes() -> None:
    row = summary_rows({"variants": [{"variant": "exclusive"}]})[0]
    assert row.pop("variant") == "exclusive"
    assert set(row.values()) == {"–"}
    assert summary_rows({}) == []
    assert interval_sentence({}) == ""


def test_the_words_need_no_plotting_library() -> None:
    code = "import sys, exsel.report; sys.exit(bool({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
