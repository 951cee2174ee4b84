"""Charts as data: what every page, bench and experiment shows. One renderer draws them.

::

    chart = Chart(
        name="loss",
        title="Loss against tokens",
        x_label="training tokens",
        y_label="validation loss",
        curves=(
            Curve(label="baseline", x=(1e6, 2e6), y=(2.1, 1.9)),
            Curve(label="exclusive", x=(1e6, 2e6), y=(2.0, 1.7), low=(1.9, 1.6), high=(2.1, 1.8)),
        ),
        references=(Reference(y=1.9, text="baseline's final loss"),),
        caption="Lower is better.",
    )
    looks = looks_of([chart])  # exsel.report.looks: a label has the same colour and marker everywhere
    page_svg(chart, looks)  # exsel.report.picture: 360 × 255 inline SVG; the page shows title, legend and caption
    write_picture(chart, folder / "loss.svg", looks)  # a file with title and legend; also .png and .pdf

This module needs nothing but Python; drawing needs the extra ``exsel[report]``. A number that is missing is NaN in a
curve, which leaves a gap, and ``None`` in a heat map, which shows a stroke.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from exsel.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line or points of a chart.

    A style is ``"line"`` with markers; ``"dashed"`` with open markers, or plainly across all categories; ``"points"``
    without a line; ``"thin"``: a faint line behind others; ``"range"``: faint strokes from low to high alone.
    """

    label: str  #: in the legend; curves of the same label have the same colour, and one entry. Empty: no entry
    x: tuple[float, ...]  #: places
    y: tuple[float, ...]  #: values
    low: tuple[float, ...] | None = None  #: of the interval at each place, drawn as a band
    high: tuple[float, ...] | None = None
    style: Literal["line", "dashed", "points", "thin", "range"] = "line"

    def __post_init__(self) -> None:
        if len({len(values) for values in (self.x, self.y, self.low, self.high) if values is not None}) > 1:
            raise ValueError(f"the curve {self.label!r} has not as many values as places")

    @classmethod
    def of(cls, label: str, places: Sequence[float], estimates: Sequence[Estimate], **style: Any) -> Self:
        """Estimates as a curve with its band, or as points with their intervals; without where one has none."""
        if all(each.low is not None for each in estimates):
            style |= {end: tuple(getattr(each, end) for each in estimates) for end in ("low", "high")}
        return cls(label=label, x=tuple(places), y=tuple(each.mean for each in estimates), **style)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A line to compare curves with: across the chart at ``y``, dotted unless at 0."""

    y: float  #: its height
    text: str = ""  #: said above it
    x: float | None = None  #: the line runs from ``y`` down at this place instead of across
    label: str = ""  #: whose colour the line has; empty: a muted one


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what is said there."""

    place: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes.

    With ``categories``, names of the places 0, 1, 2 … on the x axis, it shows dots with their intervals by category,
    and is drawn with its x axis downwards, where long names have room.
    """

    name: str  #: unique beside the others; the file's name, and a prefix of ids in a page
    title: str  #: over it
    x_label: str  #: what the axis shows, with units
    y_label: str
    curves: tuple[Curve, ...]
    categories: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()
    log_x: bool = False  #: whether the axis is logarithmic (base 2 where all values are powers of it, else 10)
    log_y: bool = False
    x_ticks: tuple[Tick, ...] = ()  #: the places that are named on the x axis; empty: chosen by the renderer
    x_range: tuple[float, float] | None = None  #: ends of the axis; ``None``: around what is drawn
    y_range: tuple[float, float] | None = None
    least_height: float = 0.0  #: the y axis spans at least this, so that rounding looks like what it is
    y_unit: str = ""  #: after each number on the y axis
    caption: str = ""  #: what one sees, in a sentence


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A field for each row and column: the deeper its colour, the farther from 0; a second colour is below 0."""

    name: str
    title: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]  #: names along the x axis
    rows: tuple[str, ...]  #: names along the y axis, from below
    values: tuple[tuple[float | None, ...], ...]  #: by row, then column; ``None``: not measured
    scale: float | None = None  #: the value of the deepest colour; ``None``: that of the largest value
    as_percent: bool = False  #: whether values are shares of 1, shown in per cent
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Charts in rows and columns: those of a row have the same y axis, those of a column the same x axis."""

    name: str
    title: str  #: over all together; each panel shows the title of its chart
    charts: tuple[tuple[Chart, ...], ...]  #: by row, then column
    caption: str = ""


Drawable = Chart | HeatMap | Panels


def curves_of(drawable: Drawable) -> list[Curve]:
    """All curves, in their order."""
    if isinstance(drawable, Panels):
        return [curve for row in drawable.charts for chart in row for curve in chart.curves]
    return list(drawable.curves) if isinstance(drawable, Chart) else []


def labels_of(drawable: Drawable) -> list[str]:
    """Each label of the curves once, in their order."""
    return list(dict.fromkeys(curve.label for curve in curves_of(drawable) if curve.label))
