"""The picture of a subject: ratio to the floor against tokens, a line a contender with its quartiles as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exsel.bench.session import SUBJECTS
from exsel.bench.table import whole
from exsel.report.charts import Chart, Curve, Panels, Reference
from exsel.report.picture import write_picture

_SUFFIXES = (".svg", ".png")

Row = Mapping[str, Any]


def write_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw each subject that was measured as ``SUBJECT.svg``, which follows the reader's light or dark mode, and as
    ``SUBJECT.png`` on white; returns what was written.
    """
    written = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        measured = [row for row in rows if row["subject"] == subject and row["passes"]]
        if any(row["contender"] != row["floor"] for row in measured):
            for path in (folder / f"{subject}{suffix}" for suffix in _SUFFIXES):
                write_picture(_panels(subject, measured), path)
                written.append(path)
    return written


def clear_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier measurement, which may have been of other subjects."""
    for path in (folder / f"{subject}{suffix}" for subject in SUBJECTS for suffix in _SUFFIXES):
        path.unlink(missing_ok=True)


def _panels(subject: str, rows: Sequence[Row]) -> Panels:
    """A row of panels a shape, a column a group."""
    contenders = [row for row in rows if row["contender"] != row["floor"]]
    groups = dict.fromkeys(row["group"] for row in contenders)
    panels = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in contenders if row["shape"] == shape]
        ends = [end for row in of_shape for end in whole(row)["ratio_quartiles"]]
        # The floor lies inside, and differences of a few per cent look like what they are.
        y_range = (min(*ends, 0.99) / 1.02, max(*ends, 1.05) * 1.02) if ends else None
        panels.append(tuple(_chart(shape, group, of_shape, rows[0]["floor"], y_range) for group in groups))
    return Panels(name=subject, title=f"{subject}: ratio to {rows[0]['floor']} against tokens", charts=tuple(panels))


def _chart(shape: str, group: str, rows: Sequence[Row], floor: str, y_range: tuple[float, float] | None) -> Chart:
    curves = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        line = [row for row in rows if (row["group"], row["contender"]) == (group, name)]
        line.sort(key=lambda row: row["tokens"])
        if line:
            low, high = zip(*(whole(row)["ratio_quartiles"] for row in line), strict=True)
            tokens = tuple(float(row["tokens"]) for row in line)
            medians = tuple(whole(row)["ratio_median"] for row in line)
            curves.append(Curve(label=name, x=tokens, y=medians, low=low, high=high))
    return Chart(
        name=f"{shape}-{group}",
        title=f"{shape}, {group}",
        x_label="tokens",
        y_label=f"ratio to {floor}",
        curves=tuple(curves),
        references=(Reference(y=1.0),),
        log_x=True,
        log_y=True,
        y_range=y_range,
        y_unit="×",
    )
