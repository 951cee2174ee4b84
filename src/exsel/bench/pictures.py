"""The picture of a subject: ratio to the floor against tokens, a line a contender with its quartiles as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exsel.bench.session import SUBJECTS
from exsel.bench.table import counted_pass
from exsel.report.charts import Chart, Curve, Panels, Reference, Tick
from exsel.report.picture import write_picture

Row = Mapping[str, Any]
_SUFFIXES = (".svg", ".png")


def write_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw each subject that was measured as ``SUBJECT.svg``, which follows the reader's light or dark mode, and as
    ``SUBJECT.png`` on white; returns what was written.
    """
    written = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        own = [row for row in rows if row["subject"] == subject and row["passes"]]
        if any(row["contender"] != row["floor"] for row in own):
            for path in (folder / f"{subject}{suffix}" for suffix in _SUFFIXES):
                write_picture(panels(subject, own), path)
                written.append(path)
    return written


def clear_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier measurement, which may have been of other subjects."""
    for path in (folder / f"{subject}{suffix}" for subject in (*SUBJECTS, "step") for suffix in _SUFFIXES):
        path.unlink(missing_ok=True)


def panels(subject: str, rows: Sequence[Row]) -> Panels:
    """A row of charts a shape, a column a group."""
    others = [row for row in rows if row["contender"] != row["floor"]]
    shapes, groups = (list(dict.fromkeys(row[name] for row in others)) for name in ("shape", "group"))
    title = f"{subject}: ratio to {rows[0]['floor']} against tokens"
    charts = (tuple(_chart(subject, shape, group, others) for group in groups) for shape in shapes)
    return Panels(name=subject, title=title, charts=tuple(charts))


def _chart(subject: str, shape: str, group: str, rows: Sequence[Row]) -> Chart:
    own = sorted((row for row in rows if (row["shape"], row["group"]) == (shape, group)), key=lambda row: row["tokens"])
    curves = []
    for name in dict.fromkeys(row["contender"] for row in own):
        line = [row for row in own if row["contender"] == name]
        x, y = tuple(row["tokens"] for row in line), tuple(counted_pass(row)["ratio_median"] for row in line)
        low, high = zip(*(counted_pass(row)["ratio_quartiles"] for row in line), strict=True)
        curves.append(Curve(label=name, x=x, y=y, low=low, high=high))
    return Chart(
        name=f"{subject}-{shape}-{group}",
        title=f"{shape}, {group}",
        x_label="tokens",
        y_label=f"ratio to {rows[0]['floor']}",
        curves=tuple(curves),
        references=(Reference(y=1.0),),
        log_x=True,
        log_y=True,
        x_ticks=tuple(Tick(tokens, _short(tokens)) for tokens in sorted({row["tokens"] for row in rows})),
        y_unit="×",
    )


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
