"""Charts as files: SVG that follows the reader's light or dark mode, and PNG on white."""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from exsel.report import svg
from exsel.report.formatting import learning_rate
from exsel.report.picture import write_png, write_svg
from exsel.reproduction.experiment import Chart, Curve

_MARKERS = "os^Dv><PXp"
# Labels that appear in many charts. Others get a look from their own letters, which is as constant.
_KNOWN = {"baseline": 0, "exclusive": 1, "selective": 2, "exclusive + selective": 3}
# What is not ours: published numbers, and what mathematics says.
_REFERENCES = ("published", "paper", "bound", "theory", "exact")

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
    look_of = looks(curve.label for chart in charts for curve in chart.curves)
    for chart, stem in zip(charts, stems, strict=True):
        draw = partial(_draw, chart=chart, look_of=look_of)
        label = f"{chart.title}. {chart.caption}".strip()
        write_svg(stem.with_name(f"{stem.name}.svg"), size(chart), draw, name=stem.name, label=label)
        if png:
            write_png(stem.with_name(f"{stem.name}.png"), size(chart), draw)


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label, different from those of the others while there are any left."""
    found: dict[str, Look] = {}
    ordered = list(dict.fromkeys(labels))
    for label in ordered:
        if label in _KNOWN:
            found[label] = Look(svg.SERIES[_KNOWN[label]], _MARKERS[_KNOWN[label]])
        elif label.lower().startswith(_REFERENCES):
            found[label] = Look(svg.INK, "_")
    for label in ordered:
        if label not in found:
            # The known ones' colours last: they are taken where a chart has them, and remind of them where not.
            spare = svg.SERIES_COLOURS - len(_KNOWN)
            first = zlib.crc32(label.encode())
            candidates = [len(_KNOWN) + (first + step) % spare for step in range(spare)] + list(_KNOWN.values())
            taken = [look.colour for look in found.values()]
            slot = min(candidates, key=lambda slot: taken.count(svg.SERIES[slot]))
            round_ = taken.count(svg.SERIES[slot])
            found[label] = Look(svg.SERIES[slot], _MARKERS[(slot + 3 * round_) % len(_MARKERS)])
    return found


def size(chart: Chart) -> tuple[int, int]:
    """Width and height in SVG units: room for every category and for the legend."""
    labels = _legend_labels(chart)
    legend = 22 * math.ceil(len(labels) / _columns(labels)) if labels else 0
    if not chart.categories:
        return _WIDTH, _HEIGHT + legend
    lanes = max(1, len(_lanes(chart)))
    heights = [max(_ROW, _LINE * lanes, _LINE * (1 + name.count("\n")) + 6) for name in _wrapped(chart)]
    return _WIDTH, 92 + max(heights) * len(heights) + legend


def _legend_labels(chart: Chart) -> list[str]:
    labels = list(dict.fromkeys(curve.label for curve in chart.curves if curve.label))
    return labels if len(labels) > 1 or not chart.categories else []


def _columns(labels: Sequence[str]) -> int:
    widest = max(len(label) for label in labels) * _LETTER + _SAMPLE
    return max(1, min(len(labels), int(_WIDTH // widest)))


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
    axes.set_title("\n".join(textwrap.wrap(chart.title, 78)), fontsize=11, loc="left", pad=10)
    labels = _legend_labels(chart)
    if labels:
        handles = [_handle(chart, label, look_of[label], colours) for label in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=_columns(labels), frameon=False, fontsize=10)


def _handle(chart: Chart, label: str, look: Look, colours: Mapping[str, str]) -> Line2D:
    curve = next(curve for curve in chart.curves if curve.label == label)
    return Line2D([], [], label=label, **_style(curve, Look(colours[look.colour], look.marker), colours[svg.SURFACE]))


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
        axes.plot(curve.y, curve.x, **style)
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
    axes.set_yticks(list(places), _wrapped(chart))
    axes.set_ylim(len(chart.categories) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart.y_label)
    axes.set_ylabel(chart.x_label)
    if chart.log_y:
        _scale_log(axes, "x", [y for curve in chart.curves for y in curve.y])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        low, high = axes.get_xlim()
        if low < 0 < high:
            axes.axvline(0, color=colours[svg.MUTED], linewidth=1, zorder=0.5)


def _wrapped(chart: Chart) -> list[str]:
    return ["\n".join(textwrap.wrap(name, 36)) or name for name in chart.categories]


def _scale(axes: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.log_x:
        _scale_log(axes, "x", [x for curve in chart.curves for x in curve.x])
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        if all(float(x).is_integer() for curve in chart.curves for x in curve.x):
            axes.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True))
    if chart.log_y:
        _scale_log(axes, "y", [y for curve in chart.curves for y in curve.y])
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
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
