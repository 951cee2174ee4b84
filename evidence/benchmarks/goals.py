"""The goals of docs/performance.md, with the worst that was measured of each, and the page's first paragraph."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exsel.bench.table import cost_ratio, counted_pass

Row = Mapping[str, Any]
Record = Mapping[str, Any]
NOT_MEASURED = "not measured"
#: What the backend auto runs on every device, by exsel.dispatch.
OURS = "exsel sdpa"
EXCLUSIVE, BOTH = "exclusive", "exclusive+selective"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def bytes_beyond_stock(row: Row, floor: Row) -> float:
    """What is kept for the backward beyond what stock attention keeps: bytes a token and query head."""
    beyond: float = (row["saved_bytes"] - floor["saved_bytes"]) / (row["batch"] * row["tokens"] * row["num_heads"])
    return beyond


def time_ratio(row: Row, _: Row) -> float:
    """The time, divided by the floor's in the same round."""
    ratio: float = counted_pass(row)["ratio_median"]
    return ratio


def extra_mebibytes(row: Row, _: Row) -> float:
    """Memory beyond the inputs and the output."""
    extra: float = row["extra_bytes"] / 2**20
    return extra


@dataclass(frozen=True, kw_only=True)
class Goal:
    """An upper bound on the worst of the rows that it is about.

    Args:
        what: the first cell of its line.
        bound: the most that meets it.
        device: the kind of device it is for.
        subject: of the rows.
        group: of the rows; empty: any.
        contender: what must meet it.
        where: which rows of these.
        by_hand: the contender that people write by hand, shown beside it for the same case; empty: there is none.
        value: what is bounded, of a row and its floor's.
        unit: of the value.
    """

    what: str
    bound: float
    device: str
    subject: str
    group: str = ""
    contender: str
    where: Callable[[Row], bool] = lambda _: True
    by_hand: str = ""
    value: Callable[[Row, Row], float] = time_ratio
    unit: str = "×"

    def rows(self, rows: Iterable[Row], contender: str) -> list[Row]:
        """Those of a contender that were measured."""
        return [
            row
            for row in measured_rows(rows, self.subject)
            if row["contender"] == contender and self.group in ("", row["group"]) and self.where(row)
        ]

    def shown(self, value: float) -> str:
        """A value with its unit: a ratio with three digits after the point, the rest with none."""
        return f"{value:.3f}{self.unit}" if self.unit == "×" else f"{value:,.0f}{self.unit}"


def _tokens(*, least: int, most: int) -> Callable[[Row], bool]:
    return lambda row: least <= row["tokens"] <= most


def _attention(device: str, tokens: str, bound: float, least: int, most: int) -> Goal:
    return Goal(
        what=f"Attention, forward and backward, T = {tokens}",
        bound=bound,
        device=device,
        subject="attention",
        group=EXCLUSIVE,
        contender=OURS,
        where=_tokens(least=least, most=most),
        by_hand="compiled normalize",
    )


def _step(device: str, what: str, group: str, bound: float, where: Callable[[Row], bool]) -> Goal:
    return Goal(
        what=f"Compiled training step, {what}, {_WORDS[group]}",
        bound=bound,
        device=device,
        subject="step",
        group="compiled",
        contender=group,
        where=where,
        by_hand=f"naive {group}",
    )


def _upgraded(model: str, group: str, bound: float) -> Goal:
    return Goal(
        what=f"Eager generation, batch 1, {model}, {_WORDS[group]}",
        bound=bound,
        device="cpu",
        subject="upgraded generation",
        group="eager",
        contender=group,
        where=lambda row: row["batch"] == 1 and row["shape"].endswith(model.split()[0].lower()),
    )


_WORDS = {EXCLUSIVE: "exclusive", BOTH: "both"}
_LONG_CASE = "8 heads of 64, T = 32,768, window 1,024"
GOALS = (
    _attention("cpu", "256 … 8,192", 1.05, 256, 8192),
    Goal(
        what="Attention, one token on a cache of 256",
        bound=1.5,
        device="cpu",
        subject="decode",
        contender=OURS,
        where=lambda row: (row["tokens"], row["batch"]) == (256, 1),
        by_hand="eager normalize",
    ),
    _step("cpu", "tiny", EXCLUSIVE, 1.02, lambda row: row["shape"] == "tiny"),
    _step("cpu", "tiny", BOTH, 1.05, lambda row: row["shape"] == "tiny"),
    _step("cpu", "width 512, 8 layers, T = 1,024", EXCLUSIVE, 1.01, lambda row: row["shape"] == "25m"),
    _step("cpu", "width 512, 8 layers, T = 1,024", BOTH, 1.03, lambda row: row["shape"] == "25m"),
    _upgraded("135M parameters", EXCLUSIVE, 1.02),
    _upgraded("135M parameters", BOTH, 1.05),
    _upgraded("tiny", EXCLUSIVE, 1.08),
    _upgraded("tiny", BOTH, 1.25),
    Goal(what=f"{_LONG_CASE}: time", bound=1.15, device="cpu", subject="window", contender="exsel"),
    Goal(
        what=f"{_LONG_CASE}: memory beyond the inputs and the output",
        bound=128,
        device="cpu",
        subject="window",
        contender="exsel",
        value=extra_mebibytes,
        unit=" MiB",
    ),
    Goal(
        what="64 packed sequences of 512, to a batch of 64",
        bound=1.1,
        device="cpu",
        subject="packed",
        contender="exsel",
    ),
    _attention("cuda", "2,048", 1.1, 2048, 2048),
    _attention("cuda", "8,192", 1.05, 8192, 8192),
    _step("cuda", "1.4b", EXCLUSIVE, 1.015, lambda row: row["shape"] == "1.4b"),
    _step("cuda", "1.4b", BOTH, 1.03, lambda row: row["shape"] == "1.4b"),
    Goal(
        what="Kept for the backward beyond stock attention, a token and head",
        bound=4,
        device="cuda",
        subject="attention",
        group=EXCLUSIVE,
        contender=OURS,
        by_hand="compiled normalize",
        value=bytes_beyond_stock,
        unit=" bytes",
    ),
    Goal(
        what="Attention, one token on a cache",
        bound=1.02,
        device="cuda",
        subject="decode",
        contender=OURS,
        by_hand="compiled normalize",
    ),
)


def measured_rows(rows: Iterable[Row], subject: str) -> list[Row]:
    """The rows of a subject that have numbers."""
    return [row for row in rows if row["subject"] == subject and row["passes"]]


def place(row: Row) -> tuple[str, int, int]:
    """What tells the row's case from the others of its subject."""
    return row["shape"], row["tokens"], row["batch"]


def device_name(record: Record) -> str:
    """The chip; of a CPU also the cores."""
    machine = record["machine"]
    return f"{machine['cores']} cores of {machine['processor']}" if record["device"] == "cpu" else machine["device"]


def goal_lines(records: Sequence[Record]) -> list[list[str]]:
    """A line a goal, each kind of device under a line with its name; what was not measured is said to be missing."""
    lines = [["Worst case", "Goal", "exsel", "By hand", ""]]
    for kind, name in DEVICES.items():
        own = [record for record in records if record["device"] == kind]
        names = sorted({device_name(record) for record in own})
        lines.append([f"**{name}**" + (f": {', '.join(names)}" if names else ""), "", "", "", ""])
        lines += [_goal_line(goal, own) for goal in GOALS if goal.device == kind]
    return lines


def _goal_line(goal: Goal, records: Sequence[Record]) -> list[str]:
    bound = f"≤ {goal.bound:g}{goal.unit}"
    found = [
        (goal.value(row, _floor(row, record["rows"])), row, record["rows"])
        for record in records
        for row in goal.rows(record["rows"], goal.contender)
    ]
    if not found:
        return [goal.what, bound, NOT_MEASURED, "", ""]
    value, row, rows = max(found, key=lambda one: one[0])
    by_hand = [
        goal.shown(goal.value(other, _floor(other, rows)))
        for other in goal.rows(rows, goal.by_hand)
        if place(other) == place(row)
    ]
    where = f"{row['shape']}, {row['tokens']:,}"
    verdict = "met" if value <= goal.bound else "missed"
    return [goal.what, bound, f"{goal.shown(value)} ({where})", *(by_hand or [""]), verdict]


def _floor(row: Row, rows: Iterable[Row]) -> Row:
    """The row that it is divided by."""
    return next(
        other
        for other in measured_rows(rows, row["subject"])
        if other["contender"] == row["floor"] and place(other) == place(row)
    )


def first_paragraph(records: Sequence[Record]) -> str:
    """Whether the lines that people write by hand cost more than exsel in a training step, and how the goals stand."""
    sentences = [sentence for record in records for sentence in _by_hand(record)]
    verdicts = [line[-1] for line in goal_lines(records)]
    met, missed = verdicts.count("met"), verdicts.count("missed")
    unknown = len(GOALS) - met - missed
    sentences.append(f"Of {len(GOALS)} goals {met} are met, {missed} are missed and {unknown} are {NOT_MEASURED}.")
    return textwrap.fill(" ".join(sentences), 120)


def _by_hand(record: Record) -> list[str]:
    """A sentence for each training step that was measured with both."""
    cases: dict[tuple[str, int, int], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in measured_rows(record["rows"], "step"):
        cases.setdefault(place(row), {})[row["group"], row["contender"]] = counted_pass(row)
    sentences = []
    for (shape, tokens, batch), found in cases.items():
        parts = []
        for group, how in (("compiled", "under `torch.compile`"), ("eager", "when both run eagerly")):
            ours, by_hand = found.get((group, EXCLUSIVE)), found.get((group, f"naive {EXCLUSIVE}"))
            if ours and by_hand:
                is_as_good = by_hand["ratio_median"] <= ours["ratio_quartiles"][1]
                verdict = "as good as exsel" if is_as_good else "slower than exsel"
                parts.append(f"{verdict} {how} ({cost_ratio(by_hand)} and {cost_ratio(ours)} of a plain step)")
        if parts:
            case = f"Training the {shape} model ({batch} × {tokens:,} tokens a step, {device_name(record)})"
            sentences.append(f"{case}, two lines of PyTorch for exclusive attention are {' and '.join(parts)}.")
    return sentences
