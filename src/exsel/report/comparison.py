"""A comparison as ``results.json`` holds it, where anything may be missing, and its tables of strings.

The tables are the same on the page and on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from exsel.intervals import Estimate
from exsel.report import formatting
from exsel.report.formatting import MISSING, number
from exsel.variants import BASELINE

_HEADINGS = {
    "variant": "Variant",
    "learning_rate": "Learning rate",
    "new_parameters": "New parameters",
    "loss": "Validation loss",
    "bits_per_byte": "Bits per byte",
    "difference": "Difference",
    "reach_tokens": "Tokens to baseline's loss",
    "reach_time": "Time to baseline's loss",
    "step_cost": "Cost of a step",
    "wall_clock": "Training, wall clock",
    "peak_memory": "Peak memory",
}
#: The columns that say what a variant costs; the others say what it gains.
COSTS = ("new_parameters", "reach_time", "step_cost", "wall_clock", "peak_memory")


def table_headings(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the heading of each column by its key; an evaluation set has one after the difference."""
    found: dict[str, str] = {}
    for key, heading in _HEADINGS.items():
        found[key] = heading
        if key == "difference":
            found |= {f"on {name}": f"Loss on {name}" for name in evaluation_sets(results)}
    return found


class Cell(NamedTuple):
    """One cell of the table: its value and what qualifies it (an interval, a share, a ratio)."""

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


def runs_of_variants(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the runs of each variant, one a seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in entries(results, "runs"):
        groups.setdefault(variant_name(run), []).append(run)
    return groups


def evaluation_sets(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the texts beside the validation text."""
    rows = entries(results, "variants")
    return list(dict.fromkeys(name for row in rows for name in section(row, "evaluation_sets")))


def on_set(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return what a row says of an evaluation set."""
    return section(section(row, "evaluation_sets"), name)


def seed_count(results: Mapping[str, Any]) -> int:
    """Return how many seeds each variant was trained with (0: the results do not say)."""
    found = (read_estimate(row, "loss") for row in entries(results, "variants"))
    return max((len(loss.values) for loss in found if loss is not None), default=0)


def read_estimate(row: Mapping[str, Any], key: str) -> Estimate | None:
    """Return the number over seeds under ``key``; ``None`` where it is missing or not finite."""
    content = section(row, key)
    mean, low, high = (number(content.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return None
    listed = content.get("values")
    values = [value for each in (listed if isinstance(listed, list) else []) if (value := number(each)) is not None]
    if low is None or high is None:
        low = high = None
    return Estimate(values=tuple(values), mean=mean, low=low, high=high)


def mean(row: Mapping[str, Any], key: str) -> float | None:
    """Return the mean over the seeds of ``row[key]``."""
    found = read_estimate(row, key)
    return None if found is None else found.mean


def reached(row: Mapping[str, Any], key: str) -> float | None:
    """Return a number of where a variant reached the baseline's final loss; ``None`` where it did not."""
    return number(section(row, "reach").get(key))


def plus_minus(found: Estimate | None, digits: int = 4) -> str:
    """Return half the interval as ``± 0.0123``; empty without one."""
    return "" if found is None or found.high is None else f"± {formatting.fixed(found.high - found.mean, digits)}"


def ratio_range(found: Estimate) -> str:
    """Return the interval of a ratio as ``0.31 to 0.40``; empty without one."""
    return "" if found.low is None else f"{formatting.fixed(found.low, 2)} to {formatting.fixed(found.high, 2)}"


def interval_sentence(results: Mapping[str, Any]) -> str:
    """Say what ``±`` and the ranges mean in the table, or plainly that one seed has none."""
    seeds = seed_count(results)
    parts = []
    if seeds == 1:
        parts.append("one seed: no interval, and no claim")
    if seeds > 1:
        parts.append(f"± and ranges are 95% intervals over {seeds} seeds (Student's t)")
    costs = (section(row, "step_cost") for row in entries(results, "variants"))
    rounds = max((int(number(cost.get("rounds")) or 0) for cost in costs), default=0)
    if rounds > 1:
        parts.append(f"a step's cost is measured apart from the trainings, its interval is over {rounds} rounds")
    choosing = section(results, "config").get("choosing_seeds")
    if isinstance(choosing, list) and choosing:
        seeds_said = f"seed{'s' if len(choosing) > 1 else ''} {', '.join(map(str, choosing))}"
        parts.append(
            f"each variant is compared at its own best learning rate, chosen with {seeds_said}, which no result uses"
        )
    return "; ".join(parts)


def sweep_ends(results: Mapping[str, Any]) -> str:
    """Say which chosen learning rates are the lowest or highest of those tried; empty where none is."""
    found = [
        f"{variant_name(row)} ({formatting.learning_rate(row.get('learning_rate'))}, the {row['end']})"
        for row in entries(results, "sweep")
        if row.get("chosen") and row.get("end")
    ]
    if not found:
        return ""
    return f"The best learning rate is at an end of those tried: {', '.join(found)}. Try rates beyond it."


def summary_cells(results: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """Return one row per variant; the keys are those of :func:`table_headings`.

    ``learning_rate`` is among the keys only where rows differ in it, or one was chosen.
    """
    rows = entries(results, "variants")
    sweep = bool(entries(results, "sweep")) or len({row.get("learning_rate") for row in rows}) > 1
    compared = any(variant_name(row) == BASELINE for row in rows)
    sets = evaluation_sets(results)
    return [_cells(row, sets, sweep=sweep, compared=compared) for row in rows]


def summary_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of ``summary_cells`` with each cell as one string, for a terminal."""
    return [{key: str(cell) for key, cell in row.items()} for row in summary_cells(results)]


def _cells(row: Mapping[str, Any], sets: Sequence[str], *, sweep: bool, compared: bool) -> dict[str, Cell]:
    is_missed = compared and variant_name(row) != BASELINE and row.get("reach", MISSING) is None
    unreached = "not reached" if is_missed else MISSING
    new, cost = row.get("new_parameters"), section(row, "step_cost")
    step = formatting.three_digits(cost.get("milliseconds"))
    return {
        "variant": Cell(variant_name(row)),
        **({"learning_rate": Cell(formatting.learning_rate(row.get("learning_rate")))} if sweep else {}),
        "new_parameters": Cell(
            formatting.count(new), formatting.percent(row.get("new_parameters_percent")) if number(new) else ""
        ),
        "loss": _loss_cell(row, "loss"),
        "bits_per_byte": _loss_cell(row, "bits_per_byte"),
        "difference": _loss_cell(row, "difference"),
        **{f"on {name}": _loss_cell(on_set(row, name), "loss") for name in sets},
        "reach_tokens": _reach_cell(formatting.compact, row, "tokens", "tokens_ratio", unreached),
        "reach_time": _reach_cell(formatting.duration, row, "seconds", "time_ratio", unreached),
        "step_cost": Cell(step if step == MISSING else f"{step} ms", _ratio_note(read_estimate(cost, "ratio"))),
        "wall_clock": Cell(formatting.duration(section(row, "train_seconds").get("mean"))),
        "peak_memory": Cell(formatting.memory(row.get("peak_memory_bytes"))),
    }


def _loss_cell(row: Mapping[str, Any], key: str) -> Cell:
    show = formatting.signed if key == "difference" else formatting.fixed
    found = read_estimate(row, key)
    if found is None:
        return Cell(MISSING)
    is_single = key == "difference" and len(found.values) == 1
    return Cell(show(found.mean), "one seed" if is_single else plus_minus(found))


def _reach_cell(show: Callable[[object], str], row: Mapping[str, Any], key: str, ratio: str, unreached: str) -> Cell:
    if not section(row, "reach"):
        return Cell(unreached)
    return Cell(show(reached(row, key)), _ratio_note(read_estimate(section(row, "reach"), ratio)))


def _ratio_note(found: Estimate | None) -> str:
    if found is None:
        return ""
    return ", ".join(part for part in (formatting.ratio(found.mean), ratio_range(found)) if part)


def answer_rows(results: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """A row for each measure and variant, those of a measure together, by the columns' headings.

    Differences are between runs of a seed.
    """
    values: dict[tuple[str, str], dict[str, dict[Any, float]]] = {}
    for variant, runs in runs_of_variants(results).items():
        for run in runs:
            key = run.get("seed"), run.get("learning_rate")
            for answer in entries(run, "answers"):
                what = formatting.plain(answer.get("task")), formatting.plain(answer.get("measure"))
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
                    "Value": _answer_cell(own.values(), _value),
                    "Difference to the baseline": _answer_cell(gaps, _difference),
                }
            )
    return rows


def _answer_cell(values: Collection[float], show: Callable[[float], str]) -> Cell:
    """The mean of a value a seed, and its interval; of seeds that all say the same there is none."""
    if not values:
        return Cell(MISSING)
    found = Estimate.of(*values)
    margin = 0.0 if found.high is None else found.high - found.mean
    note = "" if found.high is None else f"± {_value(margin)}" if margin else "in each seed"
    return Cell(show(found.mean), note)


def _value(value: float) -> str:
    # The perplexity of a model that knows nothing yet is large: it has no room for decimals.
    return formatting.fixed(value) if value < 1e5 else formatting.compact(value)


def _difference(value: float) -> str:
    return formatting.signed(value) if abs(value) < 1e5 else f"{'+' * (value > 0)}{formatting.compact(value)}"
