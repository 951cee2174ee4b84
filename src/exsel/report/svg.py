"""Matplotlib figures as inline SVG that takes its colours and its typeface from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.figure import Figure

SERIES_COLOURS = 8

# Matplotlib draws with these stand-ins; `inline` puts the page's custom properties in their place, so that
# one SVG serves light mode, dark mode and print.
INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#05000{index}" for index in range(SERIES_COLOURS))
PROPERTIES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
_STAND_IN = re.compile("|".join(PROPERTIES))

_STYLE = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # letters stay letters
    "svg.hashsalt": "exsel",
    "font.size": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelpad": 6,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Give a figure of ``width`` × ``height`` SVG units, free of the user's own matplotlib settings."""
    with matplotlib.style.context(["default", _STYLE]):
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")


def inline(figure: Figure, *, name: str, label: str) -> str:
    """Return the figure as an ``<svg>`` element without namespaces, metadata or a style sheet.

    Args:
        figure: what to draw; call this inside ``drawing``, which holds the settings that saving reads.
        name: a prefix that keeps the element's ids apart from those of other figures on the page.
        label: what the figure shows, for those who cannot see it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _drop(root, {"metadata", "style"})
    _rewrite(root, name)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _drop(element: ElementTree.Element, unwanted: set[str]) -> None:
    # Matplotlib's own style sheet selects `*`: inline, it would restyle the whole page.
    for child in list(element):
        if _local(child.tag) in unwanted:
            element.remove(child)
        else:
            _drop(child, unwanted)


def _rewrite(root: ElementTree.Element, prefix: str) -> None:
    source = ElementTree.tostring(root, encoding="unicode")
    wanted = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', source))
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        identity = attributes.pop("id", None)
        if identity in wanted:
            attributes["id"] = f"{prefix}-{identity}"
        if "href" in attributes:
            attributes["href"] = attributes["href"].replace("#", f"#{prefix}-", 1)
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{prefix}-")
        if "style" in attributes:
            attributes["style"] = _style(attributes["style"])
        element.attrib.clear()
        element.attrib.update(attributes)
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None


def _style(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;\s*", "", style)
    style = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", style)
    return _STAND_IN.sub(lambda match: f"var({PROPERTIES[match[0]]})", style)
