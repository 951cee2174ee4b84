"""The renderer: draws a chart, a heat map or panels into a matplotlib figure. Needs matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

from exsel.report.charts import Chart, Curve, Drawable, HeatMap, Panels, curves_of, labels_of
from exsel.report.formatting import fixed, learning_rate, three_digits
from exsel.report.looks import Look, Palette, look

#: Width and height of a figure in a page, in SVG units.
PAGE_SIZE = (360, 255)

# A file has more room, for its title, its legend and long names of categories.
_WIDTH, _HEIGHT = 620, 330
_PANEL_WIDTH, _PANEL_HEIGHT = 250, 190
# Categories: the height of a row, and of a line in it.
_ROW, _LINE = 21, 13
# In a legend: the width of a letter, and of a sample line with its margins.
_LETTER, _SAMPLE = 6.2, 52
_MOST_TICKS = 12
_MOST_MARKERS = 16
# Numbers stand in the fields of heat maps with at most so many rows and columns, on at most half of the colour.
_MOST_NUMBERS = 12
_LEVELS = 10
# Of a logarithmic axis, the numbers that are named first to last as there is room.
_STEPS = (1, 2, 5, 3, 1.5, 7, 8, 9, 1.2, 1.1, 1.05)

Looks = Mapping[str, Look]

_UNNAMED = look("", 1)


def draw(figure: Figure, drawable: Drawable, looks: Looks, palette: Palette) -> None:
    """Draw a figure as a page shows it, without its title and legend."""
    if isinstance(drawable, HeatMap):
        _draw_heat_map(figure, drawable, palette)
    elif isinstance(drawable, Panels):
        _draw_panels(figure, drawable, looks, palette)
    else:
        _draw_chart(figure.add_subplot(), drawable, looks, palette)


def draw_file(figure: Figure, drawable: Drawable, looks: Looks, palette: Palette) -> None:
    """Draw a figure of :func:`file_size` as a file shows it, with its title and legend."""
    draw(figure, drawable, looks, palette)
    figure.suptitle("\n".join(textwrap.wrap(drawable.title, 88)), fontsize=11, x=0.01, ha="left")
    labels = _legend_labels(drawable)
    if labels:
        curves = {curve.label: curve for curve in reversed(curves_of(drawable)) if curve.style not in ("thin", "range")}
        dots = isinstance(drawable, Chart) and bool(drawable.categories)
        handles = []
        for label in labels:
            style = _style(curves.get(label, curves_of(drawable)[0]), looks[label], palette)
            if dots:
                style |= {"marker": ""} if curves[label].style == "dashed" else {"linestyle": "none"}
            handles.append(Line2D([], [], label=label, **style))
        figure.legend(handles=handles, loc="outside lower center", ncols=_columns(labels), frameon=False, fontsize=10)


def file_size(drawable: Drawable) -> tuple[int, int]:
    """Width and height in SVG units: room for every category and panel, and for the legend."""
    labels = _legend_labels(drawable)
    legend = 18 * math.ceil(len(labels) / _columns(labels)) + 6 if labels else 0
    if isinstance(drawable, Panels):
        rows, columns = len(drawable.charts), max(map(len, drawable.charts))
        return max(_WIDTH, _PANEL_WIDTH * columns + 30), max(_HEIGHT, _PANEL_HEIGHT * rows + 40) + legend
    if isinstance(drawable, HeatMap) or not drawable.categories:
        return _WIDTH, _HEIGHT + legend
    lanes = max(1, len(_lanes(drawable)))
    heights = [max(_ROW, _LINE * lanes, _LINE * (1 + name.count("\n")) + 6) for name in _wrapped(drawable)]
    return _WIDTH, 96 + max(heights) * len(heights) + legend


def _legend_labels(drawable: Drawable) -> list[str]:
    labels = labels_of(drawable)
    return labels if len(labels) > 1 or (isinstance(drawable, Chart) and not drawable.categories) else []


def _columns(labels: Sequence[str]) -> int:
    """As many columns as have room beside each other."""
    return max(1, min(len(labels), int(_WIDTH / (max(map(len, labels)) * _LETTER + _SAMPLE))))


def _draw_panels(figure: Figure, panels: Panels, looks: Looks, palette: Palette) -> None:
    columns = max(map(len, panels.charts))
    grid = figure.subplots(len(panels.charts), columns, squeeze=False, sharex="col", sharey="row")
    for places, charts in zip(grid, panels.charts, strict=True):
        for axes, chart in zip(places, charts, strict=True):
            _draw_chart(axes, chart, looks, palette)
            axes.set_title(chart.title, fontsize=10, loc="left")
            axes.label_outer()


def _draw_chart(axes: Axes, chart: Chart, looks: Looks, palette: Palette) -> None:
    for curve in chart.curves:
        if chart.categories:
            _draw_dots(axes, chart, curve, looks.get(curve.label, _UNNAMED), palette)
        else:
            _draw_curve(axes, curve, looks.get(curve.label, _UNNAMED), palette)
    for reference in chart.references:
        colour = looks[reference.label].colour(palette) if reference.label else palette.muted
        style: dict[str, Any] = {"color": colour, "linestyle": (0, (1, 1.8)) if reference.y else "-"}
        if reference.x is not None:
            # A tall line that the frame cuts: it does not move the ends of the axis.
            axes.plot([reference.x] * 2, [reference.y, -1e9], linewidth=1.3, scaley=False, **style)
            continue
        axes.axhline(reference.y, linewidth=1 if reference.y else 0.8, **style)
        if reference.text:
            axes.annotate(
                reference.text,
                (0.02, reference.y),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=palette.muted,
                fontsize=9,
            )
    if chart.categories:
        _scale_categories(axes, chart, palette)
    else:
        _scale(axes, chart, palette)


def _style(curve: Curve, seen: Look, palette: Palette) -> dict[str, Any]:
    style: dict[str, Any] = {"color": seen.colour(palette), "marker": seen.marker}
    if curve.style == "points":
        style["linestyle"] = "none"
    if curve.style == "dashed":
        style |= {"linestyle": (0, (4, 2)), "markerfacecolor": palette.surface}
    return style


def _draw_curve(axes: Axes, curve: Curve, seen: Look, palette: Palette) -> None:
    colour = seen.colour(palette)
    if curve.style == "thin":
        axes.plot(curve.x, curve.y, color=colour, linewidth=0.9, alpha=0.45)
        return
    if curve.low is not None and curve.high is not None:
        there = [math.isfinite(y) for y in curve.y]
        if curve.style in ("line", "dashed") and len(curve.x) > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.17, linewidth=0)
            if len(curve.x) > _MOST_MARKERS:  # strokes only where a band of one place would show nothing
                beside = zip([False, *there], there, [*there[1:], False], strict=False)
                there = [here and not (before or after) for before, here, after in beside]
        strokes = [ends for *ends, here in zip(curve.x, curve.low, curve.high, there, strict=True) if here]
        if strokes:
            axes.vlines(*zip(*strokes, strict=True), color=colour, linewidth=1.2, alpha=0.5)
    if curve.style == "range":
        return
    every = 1 if curve.style == "points" else max(1, math.ceil(len(curve.x) / _MOST_MARKERS))
    start = (seen.slot or 0) % min(3, every)  # markers of curves that lie on each other stand side by side
    size = 5 if len(curve.x) <= 4 * _MOST_MARKERS else 4
    axes.plot(curve.x, curve.y, markevery=(start, every), markersize=size, **_style(curve, seen, palette))


def _lanes(chart: Chart) -> list[int]:
    """The curves whose dots stand beside each other; a dashed one runs across all categories."""
    return [index for index, curve in enumerate(chart.curves) if curve.style != "dashed"]


def _draw_dots(axes: Axes, chart: Chart, curve: Curve, seen: Look, palette: Palette) -> None:
    style = _style(curve, seen, palette)
    if curve.style == "dashed":
        axes.plot(curve.y, curve.x, **{**style, "marker": ""})
        return
    lanes = _lanes(chart)
    number = next(lane for lane, index in enumerate(lanes) if chart.curves[index] is curve)
    shift = 0.7 * (number - (len(lanes) - 1) / 2) / len(lanes)
    places = [x + shift for x in curve.x]
    if curve.low is not None and curve.high is not None:
        axes.hlines(places, curve.low, curve.high, color=style["color"], linewidth=1.6, alpha=0.7)
    axes.plot(curve.y, places, **{**style, "linestyle": "none"})


def _scale_categories(axes: Axes, chart: Chart, palette: Palette) -> None:
    places = range(len(chart.categories))
    axes.set_yticks(list(places), [""] * len(places))
    for place, name in enumerate(_wrapped(chart)):
        # Each line has its own anchor: the reader's typeface is another than the one that this is laid out with.
        lines = name.split("\n")
        for number, line in enumerate(lines):
            axes.annotate(
                line,
                (0, place),
                xycoords=("axes fraction", "data"),
                xytext=(-8, _LINE * ((len(lines) - 1) / 2 - number)),
                textcoords="offset points",
                ha="right",
                va="center",
                color=palette.muted,
            )
    axes.set_ylim(len(chart.categories) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart.y_label)
    axes.set_ylabel(chart.x_label, labelpad=10)
    _scale_axis(axes, "x", [y for curve in chart.curves for y in curve.y], log=chart.log_y, unit=chart.y_unit)
    if not chart.log_y:  # a label beside another one, with a sign and decimals, takes more room than one over another
        axes.xaxis.set_major_locator(MaxNLocator(6, min_n_ticks=1))
    low, high = axes.get_xlim()
    if low < 0 < high and not chart.log_y:
        axes.axvline(0, color=palette.muted, linewidth=1, zorder=0.5)


def _wrapped(chart: Chart) -> list[str]:
    return ["\n".join(textwrap.wrap(name, 42)) or name for name in chart.categories]


def _scale(axes: Axes, chart: Chart, palette: Palette) -> None:
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.x_range is not None:
        axes.set_xlim(chart.x_range)
    if chart.y_range is not None:
        axes.set_ylim(chart.y_range)
    low, high = axes.get_ylim()
    if high - low < chart.least_height:
        axes.set_ylim((low + high - chart.least_height) / 2, (low + high + chart.least_height) / 2)
    _scale_axis(axes, "x", [x for curve in chart.curves for x in curve.x], log=chart.log_x)
    _scale_axis(axes, "y", [y for curve in chart.curves for y in curve.y], log=chart.log_y, unit=chart.y_unit)
    if chart.x_ticks:
        _name_ticks(axes.xaxis, [tick.place for tick in chart.x_ticks], [tick.text for tick in chart.x_ticks])
    if low < 0 < high and not chart.log_y and not any(reference.y == 0 for reference in chart.references):
        axes.axhline(0, color=palette.muted, linewidth=1, zorder=0.5)


def _scale_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[float], *, log: bool, unit: str = "") -> None:
    """Name round numbers; on a logarithmic x axis the values themselves where they are few."""
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    distinct = sorted({value for value in values if value > 0})
    if not log:
        # As many decimals on every tick; but units where numbers are long.
        low, high = axis.get_view_interval()
        is_long = max(abs(low), abs(high)) >= 1e4
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)) if is_long else ScalarFormatter(False))
        is_whole = which == "x" and all(float(value).is_integer() for value in values)
        axis.set_major_locator(MaxNLocator(9 if which == "x" else 7, integer=is_whole, min_n_ticks=1))
        return
    is_binary = all(value >= 1 and math.log2(value).is_integer() for value in distinct)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2 if is_binary else 10)
    axis.set_minor_locator(NullLocator())
    show = _power if is_binary else _number
    if which == "x" and len(distinct) <= 9:
        _name_ticks(axis, distinct, [show(value) for value in distinct])
    elif is_binary:
        axis.set_major_formatter(FuncFormatter(lambda value, _: show(value) + unit))
    else:
        ticks = _log_ticks(*axis.get_view_interval())
        _name_ticks(axis, ticks, [show(tick) + unit for tick in ticks])


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis, none too near to another."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for step in _STEPS:
        for power in sorted(powers, key=abs):
            tick = float(f"{step}e{power}")
            apart = min((abs(math.log(tick / other)) for other in ticks), default=math.inf)
            if low <= tick <= high and apart > 0.07 * math.log(high / low):
                ticks.append(tick)
    return sorted(ticks)


def _name_ticks(axis: Axis, places: Sequence[float], names: Sequence[str]) -> None:
    """Name places, every second or third where there are many."""
    every = math.ceil(len(places) / _MOST_TICKS) or 1
    axis.set_major_locator(FixedLocator(list(places)[::every]))
    axis.set_major_formatter(FixedFormatter(list(names)[::every]))


def _power(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _number(value: float) -> str:
    """Plainly where that is short, else as a power of ten."""
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:,.6g}".replace("-", "−")
    return learning_rate(value).replace("-", "−")


def _short(value: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _draw_heat_map(figure: Figure, heat_map: HeatMap, palette: Palette) -> None:
    axes, bar = figure.subplots(1, 2, width_ratios=[22, 1])
    width, height = len(heat_map.columns), len(heat_map.rows)
    fields = [(x, y, value) for y, row in enumerate(heat_map.values) for x, value in enumerate(row)]
    counted = [value for _, _, value in fields if value is not None]
    scale = heat_map.scale or max(map(abs, counted), default=0.0) or 1.0
    with_numbers = max(width, height) <= _MOST_NUMBERS
    deepest = 0.5 if with_numbers else 1.0
    _fill(axes, fields, scale, deepest, 0.04 if width <= 24 else 0.0, palette)
    if with_numbers:
        # As many decimals as give the largest value two digits.
        decimals = max(2 if scale < 10 else 0, 1 - math.floor(math.log10(scale)))
        size = 7.5 if figure.get_figwidth() * 72 <= PAGE_SIZE[0] else 10
        for x, y, value in fields:
            if value is not None:
                text = f"{value:.0%}" if heat_map.as_percent else fixed(value, decimals)
                axes.text(x, y, text, ha="center", va="center", fontsize=size, color=palette.ink)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5), xlabel=heat_map.x_label, ylabel=heat_map.y_label)
    _name_ticks(axes.xaxis, range(width), heat_map.columns)
    _name_ticks(axes.yaxis, range(height), heat_map.rows)
    _draw_colour_scale(bar, counted, scale, deepest, heat_map.as_percent, palette)
    for part in (axes, bar):
        part.grid(visible=False)
        part.tick_params(length=0)
        part.spines["bottom"].set_visible(False)


def _fill(
    axes: Axes,
    fields: Sequence[tuple[int, int, float | None]],
    scale: float,
    deepest: float,
    inset: float,
    palette: Palette,
) -> None:
    # One path holds all fields of a level: a map of a thousand fields stays small.
    groups: dict[int | None, list[tuple[int, int]]] = {}
    for x, y, value in fields:
        groups.setdefault(None if value is None else round(value / scale * _LEVELS), []).append((x, y))
    missing = groups.pop(None, [])
    # What is measured is visible where it is 0, too.
    _patch(axes, [place for places in groups.values() for place in places], inset, palette.grid, 0.7)
    for level, places in groups.items():
        _patch(axes, places, inset, palette.series[1 if level > 0 else 2], abs(level) / _LEVELS * deepest)  # type: ignore[operator,arg-type]
    if missing:
        strokes = [vertex for x, y in missing for vertex in ((x - 0.2, y), (x + 0.2, y))]
        path = Path(strokes, [Path.MOVETO, Path.LINETO] * len(missing))
        axes.add_patch(PathPatch(path, edgecolor=palette.muted, fill=False, linewidth=1))


def _patch(axes: Axes, places: Sequence[tuple[int, int]], inset: float, colour: str, alpha: float) -> None:
    if not places or not alpha:
        return
    low, high = inset - 0.5, 0.5 - inset
    corners = ((low, low), (high, low), (high, high), (low, high), (0, 0))
    vertices = [(x + right, y + up) for x, y in places for right, up in corners]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(places)
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor=colour, alpha=alpha, linewidth=0))


def _draw_colour_scale(
    axes: Axes, values: Sequence[float], scale: float, deepest: float, as_percent: bool, palette: Palette
) -> None:
    lowest = -_LEVELS if min(values, default=0.0) < -scale / (2 * _LEVELS) else 0
    highest = _LEVELS if max(values, default=0.0) > scale / (2 * _LEVELS) or not lowest else 0
    levels = range(lowest, highest + 1)
    _fill(axes, [(0, level, level / _LEVELS) for level in levels], 1.0, deepest, 0.0, palette)
    axes.set(xlim=(-0.5, 0.5), ylim=(lowest - 0.5, highest + 0.5), xticks=[])
    ends = sorted({lowest, 0, highest})
    shown = [scale * end / _LEVELS for end in ends]
    _name_ticks(axes.yaxis, ends, [f"{value:.0%}" if as_percent else three_digits(value) for value in shown])
    axes.yaxis.tick_right()
