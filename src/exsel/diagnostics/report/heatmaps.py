"""The report's maps: a field for each layer and head, and for each layer and bucket of positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from exsel.diagnostics.report.diagnosed_models import (
    CATALOGUE,
    DiagnosedModel,
    bucket_label,
    buckets_of,
    extent,
    measured,
    shown,
)
from exsel.diagnostics.report.drawing import Drawing
from exsel.report import svg
from exsel.report.formatting import fixed

# By layer, a row of numbers; `None`: not counted.
Rows = dict[int, list[float | None]]

_OF_HEADS = ("similarity", "sink_mass")
_OF_POSITIONS = ("similarity",)
_LEVELS = 10
# Fields as wide as this hold their number. Letters stand on no more than half of the colour.
_MOST_WITH_NUMBERS = 12
_DEEPEST_WITH_NUMBERS = 0.5


def maps(sides: Sequence[DiagnosedModel]) -> list[Drawing]:
    """Maps of one model, or of two and of what they differ by."""
    found = []
    for where, names in (("heads", _OF_HEADS if len(sides) == 1 else _OF_HEADS[:1]), ("buckets", _OF_POSITIONS)):
        for name in measured(sides, names):
            tables = [_rows(side, name, where) for side in sides]
            titles = [side.name for side in sides]
            stems = ["first", "second"]
            if len(sides) == 2 and (both := _difference(*tables)):
                tables.append(both)
                titles.append("difference")
                stems.append("difference")
            for rows, title, stem in zip(tables, titles, stems, strict=False):
                if any(rows.values()):
                    kind = stem == "difference"
                    scale = _largest([rows] if kind else [table for table in tables[: len(sides)] if table])
                    found.append(_map(sides, name, where, rows, scale, title, stem))
    return found


def _map(
    sides: Sequence[DiagnosedModel], name: str, where: str, rows: Rows, scale: float, of: str, stem: str
) -> Drawing:
    what = "head" if where == "heads" else "position"
    title = f"{CATALOGUE[name].title} by layer and {what}"
    if len(sides) == 2:
        title += f": {of}" if stem != "difference" else f": {sides[0].name} less {sides[1].name}"
    counted = [value for row in rows.values() for value in row if value is not None]
    caption = f"{extent(counted)}: the deeper the colour, the farther from 0."
    if min(counted) < 0:
        caption += " The second colour is below 0."
    if any(value is None for row in _full(rows) for value in row):
        caption += " A stroke: not measured."
    draw = partial(_draw, rows=rows, scale=scale, ticks=None if where == "heads" else buckets_of(sides))
    return Drawing(f"{name}-{where}" + (f"-{stem}" if len(sides) == 2 else ""), title, caption, draw)


def _rows(side: DiagnosedModel, name: str, where: str) -> Rows:
    key = "heads" if where == "heads" else "buckets"
    return {
        layer["layer"]: list(found[key]) if (found := side.metric(layer, name)) is not None else []
        for layer in side.layers
    }


def _difference(rows: Rows, others: Rows) -> Rows:
    """Field by field where both have one; nothing where the models have different layers or heads."""
    if rows.keys() != others.keys() or any(len(row) != len(others[layer]) for layer, row in rows.items()):
        return {}
    return {
        layer: [
            None if value is None or other is None else value - other
            for value, other in zip(row, others[layer], strict=True)
        ]
        for layer, row in rows.items()
    }


def _largest(tables: Sequence[Rows]) -> float:
    sizes = [abs(value) for rows in tables for row in rows.values() for value in row if value is not None]
    return max(sizes, default=0.0) or 1.0


def _full(rows: Rows) -> list[list[float | None]]:
    """A layer without any number as one whose every field is missing."""
    longest = max(len(row) for row in rows.values())
    return [row or [None] * longest for row in rows.values()]


def _draw(
    figure: Figure,
    colours: Mapping[str, str],
    *,
    rows: Rows,
    scale: float,
    ticks: Sequence[Mapping[str, int]] | None,
) -> None:
    axes, bar = figure.subplots(1, 2, width_ratios=[22, 1])
    first, count = min(rows), max(rows) - min(rows) + 1
    height = max(len(row) for row in rows.values())
    with_numbers = count <= _MOST_WITH_NUMBERS and height <= _MOST_WITH_NUMBERS
    deepest = _DEEPEST_WITH_NUMBERS if with_numbers else 1.0
    fields = [
        (layer, place, value) for layer, row in zip(rows, _full(rows), strict=True) for place, value in enumerate(row)
    ]
    inset = 0.04 if count <= 24 else 0.0
    _fill(axes, fields, scale, deepest, inset, colours)
    if with_numbers:
        # As many decimals as give the largest two digits.
        decimals = max(2 if scale < 10 else 0, 1 - math.floor(math.log10(scale)))
        for layer, place, value in fields:
            if value is not None:
                axes.text(
                    layer, place, fixed(value, decimals), ha="center", va="center", fontsize=7.5, color=colours[svg.INK]
                )
    axes.set_xlim(first - 0.5, max(rows) + 0.5)
    axes.set_ylim(-0.5, height - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlabel("layer")
    if ticks is None:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_ylabel("head")
    else:
        axes.yaxis.set_major_locator(FixedLocator(range(len(ticks))))
        axes.yaxis.set_major_formatter(FixedFormatter([bucket_label(bucket) for bucket in ticks]))
        axes.set_ylabel("position of the token")
    _clean(axes)
    _bar(bar, [value for _, _, value in fields if value is not None], scale, deepest, colours)


def _fill(
    axes: Axes,
    fields: Sequence[tuple[int, int, float | None]],
    scale: float,
    deepest: float,
    inset: float,
    colours: Mapping[str, str],
) -> None:
    # One path for all fields of a level: a map of a thousand fields stays small.
    groups: dict[int | None, list[tuple[int, int]]] = {}
    for layer, place, value in fields:
        level = None if value is None else round(value / scale * _LEVELS)
        groups.setdefault(level, []).append((layer, place))
    everywhere = [(layer, place) for layer, place, value in fields if value is not None]
    _patch(axes, everywhere, inset, colours[svg.GRID], 0.7)
    for level, places in groups.items():
        if level is None:
            strokes = [vertex for x, y in places for vertex in ((x - 0.2, y), (x + 0.2, y))]
            codes = [Path.MOVETO, Path.LINETO] * len(places)
            axes.add_patch(PathPatch(Path(strokes, codes), edgecolor=colours[svg.MUTED], fill=False, linewidth=1))
        elif level:
            colour = colours[svg.SERIES[1 if level > 0 else 2]]
            _patch(axes, places, inset, colour, abs(level) / _LEVELS * deepest)


def _patch(axes: Axes, places: Sequence[tuple[float, float]], inset: float, colour: str, alpha: float) -> None:
    if not places:
        return
    low, high = inset - 0.5, 0.5 - inset
    vertices = [
        vertex
        for x, y in places
        for vertex in ((x + low, y + low), (x + high, y + low), (x + high, y + high), (x + low, y + high), (0, 0))
    ]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(places)
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor=colour, alpha=alpha, linewidth=0))


def _bar(axes: Axes, values: Sequence[float], scale: float, deepest: float, colours: Mapping[str, str]) -> None:
    """The scale beside the map."""
    lowest = -_LEVELS if min(values) < -scale / (2 * _LEVELS) else 0
    highest = _LEVELS if max(values) > scale / (2 * _LEVELS) else 0
    levels = range(lowest, highest + 1) if highest > lowest else range(2)
    _fill(axes, [(0, level, level / _LEVELS) for level in levels], 1.0, deepest, 0.0, colours)
    axes.set_xlim(-0.5, 0.5)
    axes.set_ylim(min(levels) - 0.5, max(levels) + 0.5)
    ends = [level for level in (lowest, 0, highest) if level in levels]
    axes.yaxis.set_major_locator(FixedLocator(list(dict.fromkeys(ends))))
    axes.yaxis.set_major_formatter(FixedFormatter([shown(scale * end / _LEVELS) for end in dict.fromkeys(ends)]))
    axes.yaxis.tick_right()
    axes.set_xticks([])
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
