"""How a line looks, and how a drawn figure is written. ``looks`` and ``picture`` replace this."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from exsel.files import write_text
from exsel.report import svg

# Marker in matplotlib's words and the same shape as an SVG path around (0, 0), for the page's legend.
_MARKERS = (
    ("o", "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z"),
    ("s", "M-3-3h6v6h-6z"),
    ("^", "M0-3.8L3.6 3h-7.2z"),
    ("D", "M0-4.2L4.2 0L0 4.2L-4.2 0z"),
    ("v", "M0 3.8L3.6-3h-7.2z"),
    ("P", "M-1.3-3.8h2.6v2.5h2.5v2.6h-2.5v2.5h-2.6v-2.5h-2.5v-2.6h2.5z"),
    (">", "M3.8 0L-3 3.6v-7.2z"),
    ("<", "M-3.8 0L3 3.6v-7.2z"),
)


class Series(NamedTuple):
    """How one variant looks in every figure: its colour's number and its marker, in both notations."""

    variant: str
    slot: int
    marker: str
    path: str

    @property
    def label(self) -> str:
        """The variant's name."""
        return self.variant

    @property
    def css_colour(self) -> str:
        """The custom property of the colour."""
        return svg.PROPERTIES[self.colour]

    @property
    def colour(self) -> str:
        """The stand-in that ``svg.inline`` turns into the page's colour."""
        return svg.SERIES[self.slot]


def look(variant: str, slot: int) -> Series:
    """The look of a number, from 0 to ``svg.SERIES_COLOURS`` - 1."""
    return Series(variant, slot, *_MARKERS[slot])


class Picture(NamedTuple):
    """A figure for the page: its SVG and the sentence under it."""

    name: str
    title: str
    drawing: str
    caption: str

    @property
    def svg(self) -> Markup:
        """The SVG as it is: the XML serialiser that built it has escaped what it holds."""
        return Markup(self.drawing)


#: Draws into a figure, in the colours that the page's stand-ins (:data:`exsel.report.svg.PROPERTIES`) are given.
Draw = Callable[[Figure, Mapping[str, str]], None]


def write_svg(path: Path, size: tuple[int, int], draw: Draw, *, name: str, label: str) -> None:
    """Write a figure as SVG.

    Args:
        path: where to; an older file stays as it was where this fails.
        size: width and height in SVG units.
        draw: what to draw.
        name, label: see :func:`exsel.report.svg.inline`.

    Raises:
        OSError: the file cannot be written.
    """
    with svg.drawing(*size) as figure:
        draw(figure, {stand_in: stand_in for stand_in in svg.PROPERTIES})
        inline = svg.inline(figure, name=name, label=label)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'
    style = f"<style>\n{_palette()}svg {{ background: var(--surface); font-family: sans-serif; }}\n</style>"
    write_text(path, re.sub(r"^<svg([^>]*)>", lambda match: f"{opening}{match[1]}>{style}", inline, count=1) + "\n")


def write_png(path: Path, size: tuple[int, int], draw: Draw) -> None:
    """Write a figure as PNG, in the colours of the page's light mode; see :func:`write_svg`."""
    _write_light(path, size, draw, format="png", dpi=144)


def write_pdf(path: Path, size: tuple[int, int], draw: Draw) -> None:
    """Write a figure as PDF, in the colours of the page's light mode; see :func:`write_svg`."""
    _write_light(path, size, draw, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def _write_light(path: Path, size: tuple[int, int], draw: Draw, **options: Any) -> None:
    light = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", _palette().partition("@media")[0]))
    colours = {stand_in: light[name] for stand_in, name in svg.PROPERTIES.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    with svg.drawing(*size) as figure, matplotlib.rc_context():
        settings = matplotlib.rcParams
        settings.update({key: colours[value] for key, value in settings.items() if value in tuple(colours)})
        draw(figure, colours)
        try:
            figure.savefig(temporary, facecolor=colours[svg.SURFACE], **options)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _palette() -> str:
    """The custom properties of the report's page, in light and dark."""
    css = resources.files("exsel.report").joinpath("report.css").read_text(encoding="utf-8")
    return css[: css.index("*, *::before")]
