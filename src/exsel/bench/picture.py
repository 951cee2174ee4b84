"""The picture of a subject: ratio to the floor against tokens, a line a contender with its quartiles as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from exsel.bench.session import SUBJECTS
from exsel.bench.table import whole
from exsel.report import svg
from exsel.report.series import write_png, write_svg

_MARKERS = "os^Dv><P"
# From contender to colour and marker, so that one looks the same in every picture.
_LOOKS = {
    "eager normalize": 0,
    "compiled normalize": 1,
    "compiled dot": 2,
    "exsel auto": 3,
    "exsel sdpa": 4,
    "exsel reference": 5,
    "exclusive": 1,
    "exclusive+selective": 3,
    "naive exclusive": 2,
    "naive exclusive+selective": 4,
}
_TICKS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_PANEL_WIDTH, _PANEL_HEIGHT = 250, 190

Row = Mapping[str, Any]


def write_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw each subject that was measured as ``SUBJECT.svg``, which follows the reader's light or dark mode, and as
    ``SUBJECT.png`` on white; returns what was written.
    """
    written = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        own = [row for row in rows if row["subject"] == subject and row["passes"]]
        if any(row["contender"] != row["floor"] for row in own):
            draw = partial(_draw, rows=own)
            drawing, image = folder / f"{subject}.svg", folder / f"{subject}.png"
            write_svg(drawing, _size(own), draw, name=subject, label=f"{subject}: ratio to the floor against tokens")
            write_png(image, _size(own), draw)
            written += [drawing, image]
    return written


def clear_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier measurement, which may have been of other subjects."""
    for path in (folder / f"{subject}{suffix}" for subject in SUBJECTS for suffix in (".svg", ".png")):
        path.unlink(missing_ok=True)


def _shapes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["shape"] for row in rows))


def _groups(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["group"] for row in rows if row["contender"] != row["floor"]))


def _contenders(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["contender"] for row in rows if row["contender"] != row["floor"]))


def _size(rows: Sequence[Row]) -> tuple[int, int]:
    columns = max(2, len(_groups(rows)))
    legend = 24 * (1 + len(_contenders(rows)) // 3)
    return _PANEL_WIDTH * columns + 30, _PANEL_HEIGHT * len(_shapes(rows)) + legend + 20


def _draw(figure: Figure, colours: Mapping[str, str], rows: Sequence[Row]) -> None:
    shapes, groups, contenders = _shapes(rows), _groups(rows), _contenders(rows)
    look_of = {name: (colours[svg.SERIES[_LOOKS[name]]], _MARKERS[_LOOKS[name]]) for name in contenders}
    grid = figure.subplots(len(shapes), len(groups), squeeze=False, sharex="col", sharey="row")
    for panels, shape in zip(grid, shapes, strict=True):
        for axes, group in zip(panels, groups, strict=True):
            axes.axhline(1, color=colours[svg.MUTED], linewidth=1, linestyle=(0, (1, 2)))
            for name in contenders:
                line = [row for row in rows if (row["shape"], row["group"], row["contender"]) == (shape, group, name)]
                _line(axes, line, *look_of[name])
            axes.set_title(f"{shape}, {group}", fontsize=10, loc="left")
    for panels in grid:
        _scale_ratios(panels[0])
        panels[0].set_ylabel(f"ratio to {rows[0]['floor']}")
    for axes in grid[-1]:
        axes.set_xlabel("tokens")
    for column in range(len(groups)):
        _scale_tokens(grid[0][column], sorted({row["tokens"] for row in rows}))
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in look_of.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _line(axes: Axes, rows: Sequence[Row], colour: str, marker: str) -> None:
    ordered = sorted(rows, key=lambda row: row["tokens"])
    tokens = [row["tokens"] for row in ordered]
    middle = [whole(row)["ratio_median"] for row in ordered]
    low = [whole(row)["ratio_quartiles"][0] for row in ordered]
    high = [whole(row)["ratio_quartiles"][1] for row in ordered]
    axes.fill_between(tokens, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.vlines(tokens, low, high, color=colour, linewidth=1, alpha=0.5)  # what a band of one length cannot show
    axes.plot(tokens, middle, color=colour, marker=marker, markersize=4)


def _scale_ratios(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = min(low, 0.97), max(high, 1.06)
    ticks: list[float] = []
    for tick in (1.0, *_TICKS):  # 1 first: what stands too near to another is left out
        apart = [abs(math.log(tick / other)) for other in ticks]
        if low <= tick <= high and min(apart, default=1.0) > 0.07 * math.log(high / low):
            ticks.append(tick)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}×" for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)


def _scale_tokens(axes: Axes, tokens: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(tokens))
    axes.xaxis.set_major_formatter(FixedFormatter([_short(count) for count in tokens]))
    axes.xaxis.set_minor_locator(NullLocator())


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
