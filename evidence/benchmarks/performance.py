"""The tables of docs/performance.md, from what ``exsel bench`` measured. What was not measured is never a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evidence.benchmarks.goals import (
    DEVICES,
    NOT_MEASURED,
    Record,
    Row,
    bytes_beyond_stock,
    device_name,
    first_paragraph,
    goal_lines,
    measured_rows,
    place,
)
from exsel.bench.table import cost_ratio, counted_pass, gaps, ratio_with_quartiles
from exsel.report.formatting import MISSING, three_digits


def sections(records: Sequence[Record]) -> dict[str, str]:
    """The text between the markers of each name."""
    return {
        "first paragraph": first_paragraph(records),
        "goals": markdown(goal_lines(records)),
        "attention": subject(records, "attention", _attention),
        "block": subject(records, "block", _block),
        "products": subject(records, "float32 products", _products, devices=("cpu",)),
        "fine-tuning steps": subject(records, "fine-tuning step", _fine_tuning_steps, devices=("cpu",)),
        "upgraded": subject(records, "upgraded generation", _upgraded),
        "decode": subject(records, "decode", _decode),
        "long": subject(records, "window", _long),
    }


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the headings, its first column to the left."""
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, text: str) -> str:
    """A part that opens at a click, on GitHub and on the site (whose Markdown wants to be told that it is Markdown)."""
    return f'<details markdown="1"><summary>{title}</summary>\n\n{text}\n\n</details>'


#: What is shown in one part with a subject.
_WITH = {"block": "step", "upgraded generation": "upgraded training", "window": "packed"}


def subject(
    records: Sequence[Record],
    name: str,
    render: Callable[[Sequence[Row]], list[str]],
    *,
    devices: Sequence[str] = tuple(DEVICES),
) -> str:
    """A part for each device that measured it; a kind among ``devices`` that did not is said to be missing."""
    parts = []
    for kind in devices:
        title = DEVICES[kind]
        own = [record for record in records if record["device"] == kind and measured_rows(record["rows"], name)]
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
                parts.append(folded(f"{name.capitalize()} alone, {group}", inner))
    parts.append("Kept for the backward beyond what stock attention keeps, bytes a token and query head:")
    parts.append(_kept(rows))
    return parts


def _kept(rows: Sequence[Row]) -> str:
    """The most over all cases, by group and contender."""
    floors = {place(row): row for row in rows if row["contender"] == row["floor"]}
    most: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["passes"] and row["contender"] != row["floor"]:
            more, key = bytes_beyond_stock(row, floors[place(row)]), (row["group"], row["contender"])
            most[key] = max(more, most.get(key, more))
    return markdown([["Group", "Contender", "Bytes"], *([*key, f"{value:,.0f}"] for key, value in most.items())])


def _block(rows: Sequence[Row]) -> list[str]:
    parts = []
    for name, title in (("block", "One block, forward and backward"), ("step", "A whole training step")):
        own = [row for row in rows if row["subject"] == name]
        if own:
            parts += [f"{title}:", _pivot(own, _size_tokens_group, ["Size", "Tokens", "How"], None)]
    return parts


def _products(rows: Sequence[Row]) -> list[str]:
    return [_pivot(rows, _size_tokens_group, ["Size", "Tokens", "How"], None)]


def _upgraded(rows: Sequence[Row]) -> list[str]:
    def describe(row: Row) -> list[str]:
        return [row["shape"], str(row["batch"]), row["group"]]

    parts = []
    for name, title in (("generation", "Eight tokens on a cache"), ("training", "A training step")):
        own = [row for row in rows if row["subject"] == f"upgraded {name}"]
        if own:
            parts += [f"{title} of {own[0]['tokens']}:", _pivot(own, describe, ["Model", "Batch", "How"], None)]
    return parts


def _fine_tuning_steps(rows: Sequence[Row]) -> list[str]:
    parts = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        (floor,) = (row for row in own if row["contender"] == row["floor"])
        speed = floor["batch"] * floor["tokens"] / floor["passes"]["step"]["ms_median"] * 1e3
        lines = [["Trained", f"A step's time over that of {floor['contender']}", "Tokens a second"]]
        for row in own:
            step = row["passes"]["step"]
            lines.append([row["contender"], ratio_with_quartiles(step), f"{speed / step['ratio_median']:,.0f}"])
        parts.append(markdown(lines))
    return parts


def _decode(rows: Sequence[Row]) -> list[str]:
    def describe(row: Row) -> list[str]:
        return [row["shape"], f"{row['tokens']:,}", str(row["batch"])]

    return [_pivot(rows, describe, ["Shape", "Cache", "Batch"], None)]


def _long(rows: Sequence[Row]) -> list[str]:
    parts = []
    for name, title in (("window", "A sliding window"), ("packed", "Packed sequences")):
        own = [row for row in rows if row["subject"] == name]
        if own:
            parts += [f"{title}:", _pivot(own, _size_tokens_group, ["Case", "Tokens", "Mechanisms"], None)]
    return parts


def _size_tokens_group(row: Row) -> list[str]:
    return [row["shape"], f"{row['batch']} × {row['tokens']:,}", row["group"]]


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
        cell = three_digits(summary.get("ms_median")) if is_floor else show(summary)
        lines.setdefault(tuple(describe(row)), {})[row["contender"]] = cell
    columns = [*sorted(floors), *others]
    titles = [f"{name}, ms" if name in floors else name for name in columns]
    body = [[*place, *(cells.get(name, MISSING) for name in columns)] for place, cells in lines.items()]
    return markdown([[*headings, *titles], *body])
