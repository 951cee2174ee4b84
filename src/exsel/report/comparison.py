"""A comparison as ``results.json`` holds it, where anything may be missing, and its table of strings.

The table is the same on the page and on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from exsel.report import formatting
from exsel.report.formatting import MISSING, number
from exsel.variants import BASELINE

HEADINGS = {
    "variant": "Variant",
    "learning_rate": "Learning rate",
    "new_parameters": "New parameters",
    "loss": "Validation loss",
    "bits_per_byte": "Bits per byte",
    "difference": "Difference",
    "ms_per_step": "ms/step",
    "tokens_per_second": "Tokens/s",
    "peak_memory": "Peak memory",
    "reach_tokens": "Tokens to baseline's loss",
    "reach_seconds": "Time to baseline's loss",
}


class Cell(NamedTuple):
    """One cell of the table: its value and what qualifies it (a spread, a share, a ratio)."""

    value: str
    note: str = ""

    def __str__(self) -> str:
        if not self.note:
            return self.value
        return f"{self.value} {self.note}" if self.note.startswith("±") else f"{self.value} ({self.note})"


def section(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping under ``key``; an empty one when it is missing or something else."""
    value = results.get(key)
    return value if isinstance(value, Mapping) else {}


def entries(results: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the mappings listed under ``key``; an empty list when there are none."""
    value = results.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [item for item in value if isinstance(item, Mapping)]


def variant_name(row: Mapping[str, Any]) -> str:
    """Return the variant's name as the tables, legends and sentences show it."""
    return formatting.plain(row.get("variant"))


def learning_rates(results: Mapping[str, Any]) -> list[float]:
    """Return the learning rates of the comparison, ascending."""
    rates = (number(row.get("learning_rate")) for row in entries(results, "variants"))
    return sorted({rate for rate in rates if rate is not None})


def is_sweep(results: Mapping[str, Any]) -> bool:
    """Return whether more than one learning rate was tried."""
    return len(learning_rates(results)) > 1


def best_rows(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return one row a variant: the one at its best learning rate."""
    return [row for row in entries(results, "variants") if row.get("best", True)]


def best_runs(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the runs of each variant at its best learning rate, one a seed."""
    rates = {variant_name(row): row.get("learning_rate") for row in best_rows(results)}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in entries(results, "runs"):
        if rates.get(variant_name(run)) in (None, run.get("learning_rate")):
            groups.setdefault(variant_name(run), []).append(run)
    return groups


def reached(row: Mapping[str, Any], key: str) -> float | None:
    """Return what is said of where a variant reached the baseline's final loss; ``None`` where it did not."""
    return number(section(row, "reach").get(key))


def seed_count(results: Mapping[str, Any]) -> int:
    """Return how many seeds each variant was trained with (0: the results do not say)."""
    return max((len(values(row, "loss")) for row in entries(results, "variants")), default=0)


def mean(row: Mapping[str, Any], key: str) -> float | None:
    """Return the mean over the seeds of ``row[key]``."""
    return number(section(row, key).get("mean"))


def spread(row: Mapping[str, Any], key: str) -> float | None:
    """Return the sample standard deviation over the seeds of ``row[key]``; ``None`` with one seed."""
    return number(section(row, key).get("spread"))


def values(row: Mapping[str, Any], key: str) -> list[float]:
    """Return the value of each seed of ``row[key]``."""
    listed = section(row, key).get("values")
    found = [number(item) for item in listed] if isinstance(listed, Sequence) else []
    return [item for item in found if item is not None]


def spread_sentence(results: Mapping[str, Any]) -> str:
    """Say what ``±`` means in the table, or plainly that one seed has no spread."""
    seeds = seed_count(results)
    if seeds == 0:
        return ""
    if seeds == 1:
        return "one seed: no spread"
    return f"± is the sample standard deviation over {seeds} seeds"


def summary_cells(results: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """Return one row per variant and learning rate; the keys are those of ``HEADINGS``.

    ``learning_rate`` is among the keys only when more than one was tried.
    """
    rows = entries(results, "variants")
    sweep = is_sweep(results)
    compared = any(variant_name(row) == BASELINE for row in rows)
    return [_cells(row, sweep=sweep, compared=compared) for row in rows]


def summary_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of ``summary_cells`` with each cell as one string, for a terminal."""
    return [{key: str(cell) for key, cell in row.items()} for row in summary_cells(results)]


def _cells(row: Mapping[str, Any], *, sweep: bool, compared: bool) -> dict[str, Cell]:
    step = section(row, "ms_per_step")
    quartiles = step.get("spread")
    is_missed = compared and variant_name(row) != BASELINE and row.get("reach", MISSING) is None
    unreached = "not reached" if is_missed else MISSING
    rate = Cell(formatting.learning_rate(row.get("learning_rate")), "best" if row.get("best") else "")
    new = row.get("new_parameters")
    return {
        "variant": Cell(variant_name(row)),
        **({"learning_rate": rate} if sweep else {}),
        "new_parameters": Cell(
            formatting.count(new), formatting.percent(row.get("new_parameters_percent")) if number(new) else ""
        ),
        "loss": _spread_cell(row, "loss"),
        "bits_per_byte": _spread_cell(row, "bits_per_byte"),
        "difference": _spread_cell(row, "difference"),
        "ms_per_step": Cell(
            formatting.milliseconds(step.get("median")),
            "" if number(quartiles) is None else f"IQR {formatting.milliseconds(quartiles)}",
        ),
        "tokens_per_second": Cell(formatting.count(row.get("tokens_per_second"))),
        "peak_memory": Cell(formatting.memory(row.get("peak_memory_bytes"))),
        "reach_tokens": _reach_cell(formatting.compact, row, "tokens", unreached),
        "reach_seconds": _reach_cell(formatting.duration, row, "seconds", unreached),
    }


def _spread_cell(row: Mapping[str, Any], key: str) -> Cell:
    show = formatting.signed if key == "difference" else formatting.fixed
    value, deviation = mean(row, key), spread(row, key)
    if value is not None and deviation is not None:
        return Cell(show(value), f"± {formatting.fixed(deviation)}")
    return Cell(
        show(value), "one seed" if value is not None and key == "difference" and len(values(row, key)) == 1 else ""
    )


def _reach_cell(show: Callable[[object], str], row: Mapping[str, Any], key: str, unreached: str) -> Cell:
    place, share = reached(row, key), reached(row, f"{key}_ratio")
    if place is None:
        return Cell(unreached)
    return Cell(show(place), "" if share is None else formatting.ratio(share))
