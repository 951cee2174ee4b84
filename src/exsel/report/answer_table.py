"""What the trained models of a comparison answer, over seeds and beside the baseline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from exsel.intervals import Estimate
from exsel.report.comparison import Cell, entries, runs_of_variants
from exsel.report.formatting import compact, fixed, number, plain, signed
from exsel.variants import BASELINE


def answer_rows(results: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """A row for each measure and variant, those of a measure together, by the columns' headings.

    Differences are between runs of a seed.
    """
    values: dict[tuple[str, str], dict[str, dict[Any, float]]] = {}
    for variant, runs in runs_of_variants(results).items():
        for run in runs:
            key = run.get("seed"), run.get("learning_rate")
            for answer in entries(run, "answers"):
                what = plain(answer.get("task")), plain(answer.get("measure"))
                if (value := number(answer.get("value"))) is not None:
                    values.setdefault(what, {}).setdefault(variant, {})[key] = value
    rows = []
    for (task, measure), variants in values.items():
        base = variants.get(BASELINE, {})
        for variant, own in variants.items():
            gaps = [value - base[key] for key, value in own.items() if key in base and variant != BASELINE]
            rows.append(
                {
                    "Variant": Cell(variant),
                    "Task": Cell(task),
                    "Measure": Cell(measure),
                    "Value": _cell(own.values(), _value),
                    "Difference to the baseline": _cell(gaps, _difference),
                }
            )
    return rows


def _cell(values: Collection[float], show: Callable[[float], str]) -> Cell:
    """The mean of a value a seed, and its interval; of seeds that all say the same there is none."""
    if not values:
        return Cell("–")
    found = Estimate.of(*values)
    if found.high is None:
        return Cell(show(found.mean))
    margin = found.high - found.mean
    return Cell(show(found.mean), f"± {_value(margin)}" if margin else "in each seed")


def _value(value: float) -> str:
    # The perplexity of a model that knows nothing yet is large: it has no room for decimals.
    return fixed(value) if value < 1e5 else compact(value)


def _difference(value: float) -> str:
    return signed(value) if abs(value) < 1e5 else f"{'−' if value < 0 else '+'}{compact(abs(value))}"
