"""The report's figures of lines: each metric by layer, and by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, ScalarFormatter

from exsel.diagnostics.metrics import Metric
from exsel.diagnostics.report.diagnosed_models import (
    CATALOGUE,
    DiagnosedModel,
    bucket_label,
    buckets_of,
    difference,
    extent,
    measured,
    shown,
)
from exsel.diagnostics.report.drawing import Drawing
from exsel.diagnostics.report.heatmaps import maps
from exsel.report import svg
from exsel.report.series import Series, look

#: What is drawn together of one model: the paper's figure of the attention similarity bias, and what explains it.
SIMILARITIES = ("similarity", "similarity_after", "centred_similarity", "value_similarity", "self_weight")
SPREAD = ("spikiness", "entropy", "effective_tokens", "sink_mass")
TEMPERATURES = ("query_temperature", "key_temperature", "value_temperature")
WEIGHTS = ("token_norm", "operator_norm")
# The same look for a measure in every report; 1 and 2 are those of two models, too.
_SLOTS = {"similarity": 1, "centred_similarity": 2, "similarity_after": 3, "value_similarity": 4, "self_weight": 6}
# Where single tokens differ most, so that the least and the most of them say something.
_OF_TOKENS = {*TEMPERATURES, "token_norm"}
# An axis spans at least this share of its largest number.
_LEAST_SHARE = 0.1
# … and of all the numbers that a metric can have, so that rounding looks like what it is.
_LEAST_OF_RANGE = 0.02
# So many layers have room for large markers.
_FEW = 16
# Ratio from which an axis of positions is logarithmic.
_FAR = 16
_BY_POSITION = ("similarity", "effective_tokens")


class Point(NamedTuple):
    """One layer: its place on the axis, the mean, the lowest and highest head, the least and most token."""

    place: float
    mean: float
    low: float
    high: float
    least: float
    most: float


def model_looks(sides: Sequence[DiagnosedModel]) -> list[Series]:
    """The look of each model."""
    return [look(side.name, slot) for slot, side in enumerate(sides, start=1)]


def measure_looks(sides: Sequence[DiagnosedModel]) -> list[Series]:
    """The look of each measure where those of one model are drawn together."""
    return [look(CATALOGUE[name].title, _SLOTS[name]) for name in measured(sides, SIMILARITIES)]


def drawings(sides: Sequence[DiagnosedModel]) -> list[Drawing]:
    """Every figure for which there are numbers, in the report's order."""
    found: list[Drawing] = []
    names = measured(sides, SIMILARITIES)
    if len(sides) == 1:
        if names:
            found.append(_similarities(sides[0], names))
    else:
        found += [_by_layer(sides, name) for name in names]
    found += maps(sides)
    found += [_by_position(sides, name) for name in measured(sides, _BY_POSITION)]
    found += [_by_layer(sides, name) for name in measured(sides, (*SPREAD, *TEMPERATURES))]
    if any(_strengths(side) for side in sides):
        found.append(_strength(sides))
    found += [_by_layer(sides, name) for name in measured(sides, WEIGHTS)]
    return found


def is_by_depth(sides: Sequence[DiagnosedModel]) -> bool:
    """Whether layers are drawn at their relative depth, since the models have different numbers of them."""
    return len({_count(side) for side in sides}) > 1


def _count(side: DiagnosedModel) -> int:
    return 1 + max((layer["layer"] for layer in side.layers), default=0)


def _place(side: DiagnosedModel, layer: Mapping[str, Any], by_depth: bool) -> float:
    index: int = layer["layer"]
    return (index + 0.5) / _count(side) if by_depth else float(index)


def _points(side: DiagnosedModel, name: str, by_depth: bool) -> list[Point | None]:
    """By layer; ``None`` where there is a gap, so that no line runs across it."""
    points: list[Point | None] = []
    for layer in side.layers:
        metric = side.metric(layer, name)
        if metric is None:
            points.append(None)
            continue
        heads = metric["heads"] or [metric["mean"]]
        place = _place(side, layer, by_depth)
        points.append(Point(place, metric["mean"], min(heads), max(heads), metric["least"], metric["most"]))
    return points


def _strengths(side: DiagnosedModel, by_depth: bool = False) -> list[Point | None]:
    points: list[Point | None] = []
    for layer in side.layers:
        heads = layer["strength"]
        if heads is None:
            points.append(None)
            continue
        low, high = min(heads), max(heads)
        points.append(Point(_place(side, layer, by_depth), math.fsum(heads) / len(heads), low, high, low, high))
    return points if any(points) else []


def _similarities(side: DiagnosedModel, names: Sequence[str]) -> Drawing:
    lines = [(look(CATALOGUE[name].title, _SLOTS[name]), _points(side, name, False)) for name in names]
    bias = side.means("similarity")
    caption = f"Mean over tokens and heads. cos(yᵢ, vᵢ): {extent(bias)}." if bias else "Mean over tokens and heads."
    metric = CATALOGUE["similarity"]
    draw = partial(_draw_lines, lines=lines, xlabel="layer", ylabel="mean", metric=metric, with_heads=False)
    return Drawing(
        "similarities-layers", "Attention similarity bias in each layer", caption, draw, [line[0] for line in lines]
    )


def _by_layer(sides: Sequence[DiagnosedModel], name: str) -> Drawing:
    by_depth = is_by_depth(sides)
    looks = model_looks(sides)
    lines = [(each, _points(side, name, by_depth)) for each, side in zip(looks, sides, strict=True)]
    metric = CATALOGUE[name]
    draw = partial(
        _draw_lines,
        lines=lines,
        xlabel=_layer_label(sides),
        metric=metric,
        with_tokens=name in _OF_TOKENS,
    )
    caption = _numbers(sides, name) + _band(sides)
    if name in _OF_TOKENS:
        caption += " Thin lines: from the least to the most token."
    return Drawing(f"{name}-layers", metric.title, caption, draw, looks if len(sides) > 1 else ())


def _strength(sides: Sequence[DiagnosedModel]) -> Drawing:
    by_depth = is_by_depth(sides)
    looks = model_looks(sides)
    lines = [(each, _strengths(side, by_depth)) for each, side in zip(looks, sides, strict=True)]
    draw = partial(_draw_lines, lines=lines, ylabel="α", xlabel=_layer_label(sides))
    parts = [
        f"{'' if len(sides) == 1 else side.name + ' '}{extent([point.mean for point in points if point])}"
        for side, (_, points) in zip(sides, lines, strict=True)
        if points
    ]
    caption = f"Mean over heads: {'; '.join(parts)}.{_band(sides)}"
    title = "Strength of the exclusive projection"
    return Drawing("strength-layers", title, caption, draw, looks if len(sides) > 1 else ())


def _by_position(sides: Sequence[DiagnosedModel], name: str) -> Drawing:
    looks = model_looks(sides)
    buckets = buckets_of(sides)
    lines = [(each, _bucket_points(side, name)) for each, side in zip(looks, sides, strict=True)]
    draw = partial(_draw_positions, lines=lines, buckets=buckets, name=name)
    caption = (
        "Mean over layers, heads and the tokens at these places of their sequences. Band: from the lowest to the "
        "highest layer."
    )
    title = f"{CATALOGUE[name].title} by position"
    return Drawing(f"{name}-positions", title, caption, draw, looks if len(sides) > 1 else ())


def _bucket_points(side: DiagnosedModel, name: str) -> list[Point | None]:
    rows = [found["buckets"] for layer in side.layers if (found := side.metric(layer, name)) is not None]
    points: list[Point | None] = []
    for place in range(len(side.diagnosis.buckets)):
        counted = [row[place] for row in rows if place < len(row) and row[place] is not None]
        if not counted:
            points.append(None)
            continue
        low, high = min(counted), max(counted)
        points.append(Point(float(place), math.fsum(counted) / len(counted), low, high, low, high))
    return points


def _layer_label(sides: Sequence[DiagnosedModel]) -> str:
    if not is_by_depth(sides):
        return "layer"
    return f"relative depth ({' and '.join(str(_count(side)) for side in sides)} layers)"


def _numbers(sides: Sequence[DiagnosedModel], name: str) -> str:
    if len(sides) == 1:
        return f"Mean over tokens and heads: {extent(sides[0].means(name))}."
    means = [side.mean(name) for side in sides]
    parts = [f"{side.name} {shown(mean)}" for side, mean in zip(sides, means, strict=True) if mean is not None]
    gap = f" (difference {difference(*means)})" if None not in means else ""
    lacks = [side.name for side, mean in zip(sides, means, strict=True) if mean is None]
    return f"Mean: {', '.join(parts)}{gap}.{f' Not measured in {lacks[0]}.' if lacks else ''}"


def _band(sides: Sequence[DiagnosedModel]) -> str:
    several = any(layer["num_heads"] > 1 for side in sides for layer in side.layers)
    return " Band: from the lowest to the highest head." if several else ""


def _draw_lines(
    figure: Figure,
    colours: Mapping[str, str],
    *,
    lines: Sequence[tuple[Series, Sequence[Point | None]]],
    xlabel: str,
    ylabel: str = "",
    metric: Metric | None = None,
    with_heads: bool = True,
    with_tokens: bool = False,
) -> None:
    axes = figure.add_subplot()
    if metric is not None and metric.low == -1:
        axes.axhline(0, color=colours[svg.MUTED], linewidth=0.8)
    for each, points in lines:
        _line(axes, points, colours[each.colour], each.marker, with_heads=with_heads, with_tokens=with_tokens)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel or (metric.symbol if metric else ""))
    if xlabel == "layer":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
        places = [point.place for _, points in lines for point in points if point]
        axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
    else:
        axes.set_xlim(0, 1)
    _widen(axes, metric)


def _widen(axes: Axes, metric: Metric | None = None) -> None:
    """Show what hardly differs as a line that is nearly level, and every tick as the number that it is."""
    low, high = axes.get_ylim()
    least = _LEAST_SHARE * max(abs(low), abs(high))
    if metric is not None and metric.low is not None and metric.high is not None:
        least = max(least, _LEAST_OF_RANGE * (metric.high - metric.low))
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _line(
    axes: Axes,
    points: Sequence[Point | None],
    colour: str,
    marker: str,
    *,
    with_heads: bool = True,
    with_tokens: bool = False,
) -> None:
    there = [point for point in points if point is not None]
    if not there:
        return
    gap = Point(*(math.nan,) * 6)
    place, mean, low, high, _, _ = zip(*(point or gap for point in points), strict=True)
    if with_tokens:
        _stroke(axes, [(p.place, p.least, p.most) for p in there], colour, alpha=0.45, linewidth=0.8)
    if with_heads:
        axes.fill_between(place, low, high, color=colour, alpha=0.18, linewidth=0)
        # What a band of one layer cannot show.
        beside = zip([None, *points], points, [*points[1:], None], strict=False)
        alone = [p for before, p, after in beside if p and not (before or after)]
        strokes = there if len(there) <= _FEW else alone
        _stroke(axes, [(p.place, p.low, p.high) for p in strokes], colour, alpha=0.4, linewidth=2.5)
    size = 5 if len(points) <= _FEW else 3.2
    axes.plot(place, mean, color=colour, marker=marker, markersize=size)


def _stroke(axes: Axes, ends: Sequence[tuple[float, float, float]], colour: str, **style: Any) -> None:
    if ends:
        place, low, high = zip(*ends, strict=True)
        axes.vlines(place, low, high, color=colour, **style)


def _draw_positions(
    figure: Figure,
    colours: Mapping[str, str],
    *,
    lines: Sequence[tuple[Series, Sequence[Point | None]]],
    buckets: Sequence[Mapping[str, int]],
    name: str,
) -> None:
    axes = figure.add_subplot()
    metric = CATALOGUE[name]
    if metric.low == -1:
        axes.axhline(0, color=colours[svg.MUTED], linewidth=0.8)
    for each, points in lines:
        _line(axes, points, colours[each.colour], each.marker)
    axes.xaxis.set_major_locator(FixedLocator(range(len(buckets))))
    # Where many stand beside each other, where each begins.
    labels = [bucket_label(bucket) if len(buckets) <= 6 else str(bucket["first"]) for bucket in buckets]
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.set_xlabel("position of the token" if len(buckets) <= 6 else "position of the token, from")
    axes.set_ylabel(metric.symbol)
    drawn = [point.mean for _, points in lines for point in points if point]
    if min(drawn) > 0 and max(drawn) > _FAR * min(drawn):
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        _widen(axes, metric)
