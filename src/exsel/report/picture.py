"""Figures as inline SVG for pages, and as files: SVG that follows the reader's light or dark mode, PNG or PDF on white.

Needs matplotlib; what is drawn is data of :mod:`exsel.report.charts`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

from exsel.files import write_text
from exsel.report.charts import Drawable
from exsel.report.drawing import PAGE_SIZE, Looks, draw, draw_file, file_size
from exsel.report.looks import PROPERTIES, STAND_INS, Palette, looks_of

#: The kinds of files that figures can be written as.
SUFFIXES = (".svg", ".png", ".pdf")

_STAND_IN = re.compile("|".join(PROPERTIES))


def page_svg(drawable: Drawable, looks: Looks) -> Markup:
    """Draw a figure for a page, which shows its title, legend and caption in its own words."""
    with _figure(PAGE_SIZE, STAND_INS) as figure:
        draw(figure, drawable, looks, STAND_INS)
        return Markup(_inline(figure, drawable))  # the serialiser has escaped what the figure says


def write_picture(drawable: Drawable, path: Path, looks: Looks | None = None) -> None:
    """Write a figure with its title and legend; the same data gives the same bytes.

    Args:
        drawable: what to draw.
        path: its suffix is one of :data:`SUFFIXES`. An older file stays as it was where this fails.
        looks: of all labels; ``None``: those of :func:`exsel.report.looks.looks_of`.

    Raises:
        OSError: the file cannot be written.
    """
    size = file_size(drawable)
    palette = STAND_INS if path.suffix == ".svg" else _light_palette()
    with _figure(size, palette) as figure:
        draw_file(figure, drawable, looks_of([drawable]) if looks is None else looks, palette)
        if path.suffix == ".svg":
            opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'
            style = f"<style>\n{_palette_css()}svg {{ background: var(--surface); font-family: sans-serif; }}\n</style>"
            inline = _inline(figure, drawable)
            write_text(path, re.sub(r"^<svg([^>]*)>", lambda match: f"{opening}{match[1]}>{style}", inline) + "\n")
            return
        options: dict[str, Any] = {"format": "png", "dpi": 144}
        if path.suffix == ".pdf":
            undated = {"CreationDate": None, "Creator": None, "Producer": None}
            options = {"format": "pdf", "metadata": undated}
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            figure.savefig(temporary, facecolor=palette.surface, **options)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _figure(size: tuple[int, int], palette: Palette) -> Iterator[Figure]:
    """A figure of so many SVG units, free of the user's own matplotlib settings."""
    style = {
        "svg.fonttype": "none",
        "pdf.fonttype": 42,  # letters stay letters
        "svg.hashsalt": "exsel",
        "font.size": 10.5,
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.muted,
        "axes.labelpad": 6,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": palette.grid,
        "grid.linewidth": 0.8,
        "text.color": palette.ink,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.style.context(["default", style]):
        yield Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def _palette_css() -> str:
    """The custom properties of every page, in light and dark."""
    css = resources.files("exsel.report").joinpath("report.css").read_text(encoding="utf-8")
    return css[: css.index("*, *::before")]


def _light_palette() -> Palette:
    light = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", _palette_css().partition("@media")[0]))
    ink, muted, grid, surface = (light[PROPERTIES[colour]] for colour in STAND_INS[:4])
    return Palette(ink, muted, grid, surface, tuple(light[PROPERTIES[colour]] for colour in STAND_INS.series))


def _inline(figure: Figure, drawable: Drawable) -> str:
    """An ``<svg>`` element without namespaces, metadata or a style sheet, in the page's colours and typeface."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    # Matplotlib's own style sheet selects `*`: inline, it would restyle the whole page.
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    source = ElementTree.tostring(root, encoding="unicode")
    wanted = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', source))
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        # Ids that nothing refers to go; the others begin with the figure's name, which is unique in a page.
        identity = attributes.pop("id", None)
        if identity in wanted:
            attributes["id"] = f"{drawable.name}-{identity}"
        if "href" in attributes:
            attributes["href"] = attributes["href"].replace("#", f"#{drawable.name}-", 1)
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{drawable.name}-")
        if "style" in attributes:
            style = re.sub(r"font-family: [^;]*;\s*", "", attributes["style"])
            style = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", style)
            attributes["style"] = _STAND_IN.sub(lambda match: f"var({PROPERTIES[match[0]]})", style)
        element.attrib.clear()
        element.attrib.update(attributes)
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
    box, label = root.attrib["viewBox"], f"{drawable.title}. {drawable.caption}".strip()
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
