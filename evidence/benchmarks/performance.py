"""The tables of docs/performance.md, from what ``exsel bench`` measured. What was not measured is never a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exsel.bench.table import cost_ratio, counted_pass, gaps, ratio_with_quartiles
from exsel.report.formatting import MISSING, milliseconds

Row = Mapping[str, Any]
Record = Mapping[str, Any]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """A bound on the worst ratio of the rows that it is about."""

    what: str
    bound: float
    subject: str
    group: str
    contender: str
    tokens: Callable[[int], bool] = lambda _: True
    device: str | None = None
    against: tuple[str, ...] = ()


# What the backend auto runs on every device, by exsel.dispatch.
OURS = "exsel sdpa"
GOALS = (
    Goal("Attention, exclusive, T ≥ 4096", 1.02, "attention", "exclusive", OURS, lambda t: t >= 4096, "cuda"),
    Goal("Attention, exclusive, T = 2048", 1.05, "attention", "exclusive", OURS, lambda t: t == 2048, "cuda"),
    Goal("Attention, exclusive, T = 256 … 8192", 1.05, "attention", "exclusive", OURS, device="cpu"),
    Goal("Attention, both, T = 2048", 1.08, "attention", "exclusive+selective", OURS, lambda t: t == 2048),
    Goal(
        "Attention, exclusive, to the faster compiled form",
        1.0,
        "attention",
        "exclusive",
        OURS,
        against=("compiled normalize", "compiled dot"),
    ),
    Goal("Training step, exclusive", 1.01, "step", "compiled", "exclusive"),
    Goal("Training step, both", 1.03, "step", "compiled", "exclusive+selective"),
    Goal("Decode, exclusive", 1.02, "decode", "", OURS),
    *(
        Goal(f"Upgraded model, {what}{how}, {name}", bound, f"upgraded {what}", group, contender)
        for what, group, how, bound in (
            ("generation", "eager", ", eager", 1.02),
            ("generation", "compiled", ", compiled", 1.02),
            ("training", "compiled", " step, compiled", 1.03),
        )
        for name, contender in (("exclusive", "exclusive"), ("both", "exclusive+selective"))
    ),
)


def sections(records: Sequence[Record]) -> dict[str, str]:
    """The text between the markers of each name."""
    return {
        "goals": goals(records),
        "attention": subject(records, "attention", _attention),
        "block": subject(records, "block", _block),
        "upgraded": subject(records, "upgraded generation", _upgraded),
        "decode": subject(records, "decode", _decode),
    }


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the headings, its first column to the left."""
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def device_name(record: Record) -> str:
    """The chip; of a CPU also the cores."""
    machine = record["machine"]
    return f"{machine['cores']} cores of {machine['processor']}" if record["device"] == "cpu" else machine["device"]


def goals(records: Sequence[Record]) -> str:
    """Each goal with the worst that was measured, a column a device; a kind of device without results stays empty."""
    columns: list[tuple[str, str, list[Record]]] = []
    for kind, name in (("cpu", "CPU"), ("cuda", "GPU")):
        named = {device_name(record) for record in records if record["device"] == kind}
        columns += [(kind, each, [r for r in records if device_name(r) == each]) for each in sorted(named)]
        if not named:
            columns.append((kind, name, []))
    table = [["Worst ratio", "Goal", *(name for _, name, _ in columns)]]
    for goal in GOALS:
        cells = [
            "" if goal.device not in (None, kind) else _worst(goal, [row for r in own for row in r["rows"]])
            for kind, _, own in columns
        ]
        table.append([goal.what, f"≤ {goal.bound:.2f}×", *cells])
    return markdown(table)


def _worst(goal: Goal, rows: Sequence[Row]) -> str:
    found = []
    for row in _measured(rows, goal.subject):
        if row["contender"] == goal.contender and goal.group in ("", row["group"]) and goal.tokens(row["tokens"]):
            value = counted_pass(row)["ratio_median"]
            if goal.against:
                others = [
                    counted_pass(other)["ratio_median"]
                    for other in _measured(rows, goal.subject)
                    if _place(other) == _place(row)
                    and other["group"] == row["group"]
                    and other["contender"] in goal.against
                ]
                if not others:
                    continue
                value /= min(others)
            found.append((value, row))
    if not found:
        return NOT_MEASURED
    value, row = max(found, key=lambda one: one[0])
    return f"{value:.3f}× ({row['shape']}, {row['tokens']})"


def _measured(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row["subject"] == name and row["passes"]]


def _place(row: Row) -> tuple[str, int, int]:
    return row["shape"], row["tokens"], row["batch"]


#: What is shown in one part with a subject.
_WITH = {"block": "step", "upgraded generation": "upgraded training"}


def subject(records: Sequence[Record], name: str, render: Callable[[Sequence[Row]], list[str]]) -> str:
    """A part for each device that measured it; a kind of device that did not is said to be missing."""
    parts = []
    for kind, title in (("cpu", "CPU"), ("cuda", "GPU")):
        own = [record for record in records if record["device"] == kind and _measured(record["rows"], name)]
        if not own:
            parts.append(f"**{title}**: {NOT_MEASURED}.")
        for record in own:
            versions = f"torch {record['machine']['torch']}, {record['dtype']}"
            revision = (record["git_revision"] or "unknown")[:10]
            rows = [row for row in record["rows"] if row["subject"] in (name, _WITH.get(name, name))]
            parts.append(f"**{device_name(record)}**, {versions}, revision {revision}: `{record['command']}`")
            parts += render(rows)
            parts += [f"*{gap}*" for gap in gaps(rows)]
    return "\n\n".join(parts)


def _attention(rows: Sequence[Row]) -> list[str]:
    parts = []
    for group in ("exclusive", "exclusive+selective"):
        own = [row for row in rows if row["group"] in ("baseline", group)]
        if any(row["group"] == group for row in own):
            parts.append(f"Forward and backward, {group}:")
            parts.append(_pivot(own, lambda row: [row["shape"], f"{row['tokens']:,}"], ["Shape", "T"], "both"))
            for name in ("forward", "backward"):
                inner = _pivot(own, lambda row: [row["shape"], f"{row['tokens']:,}"], ["Shape", "T"], name)
                parts.append(f"<details><summary>{name.capitalize()} alone, {group}</summary>\n\n{inner}\n\n</details>")
    parts.append("Kept for the backward beyond what stock attention keeps, bytes a token and query head:")
    parts.append(_kept(rows))
    return parts


def _kept(rows: Sequence[Row]) -> str:
    """The most over all cases, by group and contender."""
    floor = {_place(row): row["saved_bytes"] for row in rows if row["contender"] == row["floor"]}
    most: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["passes"] and row["contender"] != row["floor"]:
            more = (row["saved_bytes"] - floor[_place(row)]) / (row["batch"] * row["tokens"] * row["num_heads"])
            key = (row["group"], row["contender"])
            most[key] = max(more, most.get(key, more))
    return markdown([["Group", "Contender", "Bytes"], *([*key, f"{value:,.0f}"] for key, value in most.items())])


def _block(rows: Sequence[Row]) -> list[str]:
    def describe(row: Row) -> list[str]:
        return [row["shape"], f"{row['batch']} × {row['tokens']:,}", row["group"]]

    parts = []
    for name, title in (("block", "One block, forward and backward"), ("step", "A whole training step")):
        own = [row for row in rows if row["subject"] == name]
        if own:
            parts += [f"{title}:", _pivot(own, describe, ["Size", "Tokens", "How"], None)]
    return parts


def _upgraded(rows: Sequence[Row]) -> list[str]:
    def describe(row: Row) -> list[str]:
        return [row["shape"], str(row["batch"]), row["group"]]

    parts = []
    for name, title in (("generation", "Eight tokens on a cache"), ("training", "A training step")):
        own = [row for row in rows if row["subject"] == f"upgraded {name}"]
        if own:
            parts += [f"{title} of {own[0]['tokens']}:", _pivot(own, describe, ["Model", "Batch", "How"], None)]
    return parts


def _decode(rows: Sequence[Row]) -> list[str]:
    def describe(row: Row) -> list[str]:
        return [row["shape"], f"{row['tokens']:,}", str(row["batch"])]

    return [_pivot(rows, describe, ["Shape", "Cache", "Batch"], None)]


def _pivot(
    rows: Sequence[Row], describe: Callable[[Row], list[str]], headings: list[str], pass_name: str | None
) -> str:
    """A line a case, a column a contender; the floor in milliseconds, the others as ratios to it."""
    floors = {row["contender"] for row in rows if row["contender"] == row["floor"]}
    others = dict.fromkeys(row["contender"] for row in rows if row["contender"] not in floors)
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    show = cost_ratio if pass_name in ("forward", "backward") else ratio_with_quartiles
    for row in rows:
        summary = counted_pass(row) if pass_name is None else row["passes"].get(pass_name, {})
        is_floor = row["contender"] == row["floor"]
        cell = milliseconds(summary.get("ms_median")) if is_floor else show(summary)
        lines.setdefault(tuple(describe(row)), {})[row["contender"]] = cell
    columns = [*sorted(floors), *others]
    titles = [f"{name}, ms" if name in floors else name for name in columns]
    body = [[*place, *(cells.get(name, MISSING) for name in columns)] for place, cells in lines.items()]
    return markdown([[*headings, *titles], *body])
