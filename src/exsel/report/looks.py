"""How a line looks in every figure of a page, and a figure as the page takes it."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

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
