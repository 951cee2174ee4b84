"""Charts as files: SVG that follows the reader's light or dark mode, and PNG on white."""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

from evidence.papers.experiment import Chart, Curve
from exsel.report import svg
from exsel.report.formatting import learning_rate
from exsel.report.series import write_png, write_svg

# Labels that appear in many charts. Others get a look from their own letters, which is as constant while no two of an
# experiment's take the same colour.
_KNOWN = {
    "baseline": (0, "o"),
    "plain": (0, "o"),  # the same in the words of the other paper
    "exclusive": (1, "s"),
    "selective": (2, "^"),
    "exclusive + selective": (3, "D"),
    "learned strength": (4, "v"),
    "masked diagonal": (5, "P"),
    "common direction removed": (6, "X"),
    "output gate": (7, ">"),
    "constant temperature": (4, "<"),
    "Scalable-Softmax": (5, "p"),
    "YaRN's temperature": (6, "h"),
}
# What is not ours: published numbers, and what mathematics says.
_REFERENCES = ("published", "paper", "bound", "theory", "exact", "target")
_REFERENCE_MARKERS = "_x+|1"

_MARKERS = "os^Dv><PXph"

_WIDTH, _HEIGHT = 620, 330
_ROW, _LINE = 21, 13
# Of a letter in the legend, and of a sample line with its margins.
_LETTER, _SAMPLE = 6.2, 52
_MOST_TICKS = 9
_MOST_MARKERS = 12


class Look(NamedTuple):
    """How the curves of a label are drawn: the stand-in of their colour (see :mod:`exsel.report.svg`) and a marker."""

    colour: str
    marker: str


def write_charts(charts: Sequence[Chart], stems: Sequence[Path], *, png: bool) -> None:
    """Write charts that belong together.

    Args:
        charts: the same label looks the same in all of them.
        stems: for each the path without a suffix.
        png: also as PNG.

    Raises:
        OSError: a file cannot be written.
    """
    look_of = looks([[curve.label for curve in chart.curves] for chart in charts])
    for chart, stem in zip(charts, stems, strict=True):
        draw = partial(_draw, chart=chart, look_of=look_of)
        label = f"{chart.title}. {chart.caption}".strip()
        write_svg(stem.with_name(f"{stem.name}.svg"), size(chart), draw, name=stem.name, label=label)
        if png:
            write_png(stem.with_name(f"{stem.name}.png"), size(chart), draw)


def looks(groups: Sequence[Sequence[str]]) -> dict[str, Look]:
    """A look for each label, different from all others while there are any left.

    Args:
        groups: the labels of each chart. Those of one chart have different colours where there are enough.
    """
    found: dict[str, Look] = {}
    ordered = list(dict.fromkeys(label for group in groups for label in group))
    for label in ordered:
        if label in _KNOWN:
            slot, marker = _KNOWN[label]
            found[label] = Look(svg.SERIES[slot], marker)
        elif label.lower().startswith(_REFERENCES):
            references = [look for look in found.values() if look.colour == svg.INK]
            found[label] = Look(svg.INK, _REFERENCE_MARKERS[len(references) % len(_REFERENCE_MARKERS)])
    for label in ordered:
        if label not in found:
            first = zlib.crc32(label.encode())
            beside = {other for group in groups if label in group for other in group}
            taken = [look.colour for other, look in found.items() if other in beside]
            candidates = [svg.SERIES[(first + step) % svg.SERIES_COLOURS] for step in range(svg.SERIES_COLOURS)]
            colour = min(candidates, key=taken.count)  # the first of those that are taken least
            markers = [marker for marker in _MARKERS if Look(colour, marker) not in found.values()]
            found[label] = Look(colour, markers[first % len(markers)] if markers else _MARKERS[0])
    return found


def size(chart: Chart) -> tuple[int, int]:
    """Width and height in SVG units: room for every category and for the legend."""
    labels = _legend_labels(chart)
    legend = 18 * math.ceil(len(labels) / _columns(labels)) + 6 if labels else 0
    if not chart.categories:
        return _WIDTH, _HEIGHT + legend
    lanes = max(1, len(_lanes(chart)))
    heights = [max(_ROW, _LINE * lanes, _LINE * (1 + name.count("\n")) + 6) for name in _wrapped(chart)]
    return _WIDTH, 96 + max(heights) * len(heights) + legend


def _legend_labels(chart: Chart) -> list[str]:
    labels = list(dict.fromkeys(curve.label for curve in chart.curves if curve.label))
    return labels if len(labels) > 1 or not chart.categories else []


def _columns(labels: Sequence[str]) -> int:
    """As many as have room beside each other."""
    widths = [len(label) * _LETTER + _SAMPLE for label in labels]
    for count in range(len(labels), 1, -1):
        short, long = divmod(len(labels), count)  # matplotlib fills columns from above, the longer ones first
        ends = [short * (number + 1) + min(number + 1, long) for number in range(count)]
        columns = [widths[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if sum(max(column) for column in columns) <= _WIDTH:
            return count
    return 1


def _draw(figure: Figure, colours: Mapping[str, str], *, chart: Chart, look_of: Mapping[str, Look]) -> None:
    axes = figure.add_subplot()
    for curve in chart.curves:
        look = look_of[curve.label]
        painted = Look(colours[look.colour], look.marker)
        if chart.categories:
            _draw_category_curve(axes, chart, curve, painted, colours[svg.SURFACE])
        else:
            _draw_curve(axes, curve, painted, colours[svg.SURFACE])
    if chart.categories:
        _scale_categories(axes, chart, colours)
    else:
        _scale(axes, chart, colours)
    figure.suptitle("\n".join(textwrap.wrap(chart.title, 88)), fontsize=11, x=0.01, ha="left")
    labels = _legend_labels(chart)
    if labels:
        handles = [_handle(chart, label, look_of[label], colours) for label in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=_columns(labels), frameon=False, fontsize=10)


def _handle(chart: Chart, label: str, look: Look, colours: Mapping[str, str]) -> Line2D:
    curve = next(curve for curve in chart.curves if curve.label == label)
    style = _style(curve, Look(colours[look.colour], look.marker), colours[svg.SURFACE])
    if chart.categories:
        style |= {"marker": ""} if curve.style == "dashed" else {"linestyle": "none"}
    return Line2D([], [], label=label, **style)


def _style(curve: Curve, look: Look, surface: str) -> dict[str, Any]:
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 5}
    if curve.style == "points":
        style["linestyle"] = "none"
    if curve.style == "dashed":
        style |= {"linestyle": (0, (4, 2)), "markerfacecolor": surface}
    return style


def _draw_curve(axes: Axes, curve: Curve, look: Look, surface: str) -> None:
    if curve.low is not None and curve.high is not None:
        if curve.style != "points" and len(curve.x) > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=look.colour, alpha=0.16, linewidth=0)
        if len(curve.x) <= _MOST_MARKERS:
            axes.vlines(curve.x, curve.low, curve.high, color=look.colour, linewidth=1.2, alpha=0.6)
    every = 1 if curve.style == "points" else max(1, math.ceil(len(curve.x) / _MOST_MARKERS))
    axes.plot(curve.x, curve.y, markevery=every, **_style(curve, look, surface))


def _lanes(chart: Chart) -> list[int]:
    """Of the curves those whose dots stand beside each other; a dashed one runs across all categories."""
    return [index for index, curve in enumerate(chart.curves) if curve.style != "dashed"]


def _draw_category_curve(axes: Axes, chart: Chart, curve: Curve, look: Look, surface: str) -> None:
    style = _style(curve, look, surface)
    if curve.style == "dashed":
        axes.plot(curve.y, curve.x, **{**style, "marker": ""})
        return
    lanes = _lanes(chart)
    number = next(lane for lane, index in enumerate(lanes) if chart.curves[index] is curve)
    shift = 0.7 * (number - (len(lanes) - 1) / 2) / len(lanes)
    places = [x + shift for x in curve.x]
    if curve.low is not None and curve.high is not None:
        axes.hlines(places, curve.low, curve.high, color=look.colour, linewidth=1.6, alpha=0.7)
    axes.plot(curve.y, places, **{**style, "linestyle": "none"})


def _scale_categories(axes: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    places = range(len(chart.categories))
    axes.set_yticks(list(places), [""] * len(places))
    for place, name in enumerate(_wrapped(chart)):
        # Line by line, each with its own anchor: the reader's typeface is another than the one this is laid out with.
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
                color=colours[svg.MUTED],
            )
    axes.set_ylim(len(chart.categories) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart.y_label)
    axes.set_ylabel(chart.x_label, labelpad=10)
    if chart.log_y:
        _scale_log(axes, "x", [y for curve in chart.curves for y in curve.y])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        low, high = axes.get_xlim()
        if low < 0 < high:
            axes.axvline(0, color=colours[svg.MUTED], linewidth=1, zorder=0.5)


def _wrapped(chart: Chart) -> list[str]:
    return ["\n".join(textwrap.wrap(name, 42)) or name for name in chart.categories]


def _scale(axes: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.log_x:
        _scale_log(axes, "x", [x for curve in chart.curves for x in curve.x])
    else:
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        if all(float(x).is_integer() for curve in chart.curves for x in curve.x):
            axes.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True))
    if chart.log_y:
        _scale_log(axes, "y", [y for curve in chart.curves for y in curve.y])
    else:
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        low, high = axes.get_ylim()
        if low < 0 < high:
            axes.axhline(0, color=colours[svg.MUTED], linewidth=1, zorder=0.5)


def _scale_log(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Ticks at the values where they are few; base 2 where all are powers of it, such as lengths."""
    distinct = sorted({value for value in values if value > 0})
    is_binary = all(value >= 1 and math.log2(value).is_integer() for value in distinct)
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    set_scale("log", base=2 if is_binary else 10)
    axis.set_minor_locator(NullLocator())
    show = _power if is_binary else _number
    if which == "x" and len(distinct) <= _MOST_TICKS:
        axis.set_major_locator(FixedLocator(distinct))
        axis.set_major_formatter(FixedFormatter([show(value) for value in distinct]))
        return
    if not is_binary:
        is_short = not distinct or distinct[-1] / distinct[0] < 100
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if is_short else (1.0,), numticks=_MOST_TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def _power(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _number(value: float) -> str:
    """Plainly where that is short, else as a power of ten."""
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:,.6g}".replace("-", "−")
    return learning_rate(value).replace("-", "−")
