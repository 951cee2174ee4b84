"""The rows of ``bench.json`` in words. What was not measured is a dash, with its reason below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from exsel.report.formatting import MISSING, memory, number, three_digits

HEADINGS = {
    "case": "Case",
    "group": "Group",
    "contender": "Contender",
    "ms": "ms",
    "forward": "Forward",
    "backward": "Backward",
    "whole": "Whole",
    "saved": "Kept for backward",
    "peak": "Peak memory",
}


def counted_pass(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pass that counts: forward and backward together, or the only one there is; empty if not measured."""
    passes: Mapping[str, Mapping[str, Any]] = row["passes"]
    return passes.get("both") or next(iter(passes.values()), {})


def cost_ratio(summary: Mapping[str, Any]) -> str:
    """``1.034×``."""
    median = number(summary.get("ratio_median"))
    return MISSING if median is None else f"{median:.3f}×"


def ratio_with_quartiles(summary: Mapping[str, Any]) -> str:
    """``1.034× (1.020–1.051)``."""
    if not summary:
        return MISSING
    low, high = summary["ratio_quartiles"]
    return f"{cost_ratio(summary)} ({low:.3f}–{high:.3f})"


def case_name(row: Mapping[str, Any]) -> str:
    """``attention 1.4b, 2 × 2048 tokens``."""
    return f"{row['subject']} {row['shape']}, {row['batch']} × {row['tokens']} tokens"


def table_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A line a contender, by the keys of :data:`HEADINGS`; ratios are to the floor, within a round."""
    lines = []
    for row in rows:
        passes = row["passes"]
        lines.append(
            {
                "case": case_name(row),
                "group": row["group"],
                "contender": row["contender"],
                "ms": three_digits(counted_pass(row).get("ms_median")),
                "forward": cost_ratio(passes.get("forward", {})),
                "backward": cost_ratio(passes.get("backward", {})),
                "whole": ratio_with_quartiles(counted_pass(row)),
                "saved": memory(row["saved_bytes"]),
                "peak": memory(row["peak_bytes"]),
            }
        )
    for line, last in zip(reversed(lines[1:]), reversed(lines[:-1]), strict=True):
        if line["case"] == last["case"]:
            line["case"] = ""
    for key in ("forward", "backward", "saved", "peak"):
        if all(line[key] == MISSING for line in lines):
            for line in lines:
                del line[key]
    return lines


def gaps(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why contenders have no numbers: a sentence a contender and reason, with its cases."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["refused"] is not None:
            cases = reasons.setdefault((row["contender"], row["refused"]), [])
            if case_name(row) not in cases:
                cases.append(case_name(row))
    return [
        f"{contender}, not measured ({cases[0]}{f' and {len(cases) - 1} more' if cases[1:] else ''}): {reason}"
        for (contender, reason), cases in reasons.items()
    ]
