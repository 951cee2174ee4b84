"""What the trained models of a comparison answer, over seeds and beside the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from exsel.intervals import Estimate
from exsel.report.comparison import entries, plus_minus, runs_of_variants
from exsel.report.formatting import fixed, number, plain, signed
from exsel.variants import BASELINE


class AnswerRow(NamedTuple):
    """One measure of one task of one variant, as it is shown."""

    variant: str
    task: str
    measure: str
    value: str
    difference: str


#: The columns of the rows on a terminal.
ANSWER_HEADINGS = {
    "variant": "Variant",
    "task": "Task",
    "measure": "Measure",
    "value": "Value",
    "difference": "Difference to the baseline",
}


def answer_rows(results: Mapping[str, Any]) -> list[AnswerRow]:
    """A row for each measure and variant, those of a measure together; differences are between runs of a seed."""
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
            found, gap = Estimate.of(*own.values()), Estimate.of(*gaps) if gaps else None
            mean = f"{fixed(found.mean, 4)} {plus_minus(found)}".strip()
            difference = "–" if gap is None else f"{signed(gap.mean, 4)} {plus_minus(gap)}".strip()
            rows.append(AnswerRow(variant, task, measure, mean, difference))
    return rows
