"""The picture of passkey retrieval: a field for each length and depth, the fuller the more keys were found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from exsel.evaluation.retrieval import PasskeyResult
from exsel.files import write_text
from exsel.report import svg

#: The kinds of picture, by the suffix of the file.
SUFFIXES = (".svg", ".png")
_FIELD_WIDTH, _FIELD_HEIGHT = 62, 34
_STAND_INS = {svg.INK: "--ink", svg.MUTED: "--muted", svg.GRID: "--grid", svg.SURFACE: "--surface"} | {
    svg.SERIES[1]: "--series-1"
}


def write_picture(result: PasskeyResult, path: Path) -> None:
    """Draw the accuracy by length and depth.

    Args:
        result: what to draw.
        path: ``.svg``, which follows the reader's light or dark mode, or ``.png`` on white.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written; an older one stays as it was.
    """
    if path.suffix == ".svg":
        _write_svg(result, path)
    elif path.suffix == ".png":
        _write_png(result, path)
    else:
        raise ValueError(f"{path}: a picture's name ends with {' or '.join(SUFFIXES)}")


def _write_svg(result: PasskeyResult, path: Path) -> None:
    width, height = _size(result)
    with svg.drawing(width, height) as figure:
        _draw(figure, result, {colour: colour for colour in _STAND_INS})
        label = f"Share of passkeys found by length and depth: {result.mean:.0%} of all."
        inline = svg.inline(figure, name="passkey", label=label)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    style = f"<style>\n{_palette()}svg {{ background: var(--surface); font-family: sans-serif; }}\n</style>"
    write_text(path, re.sub(r"^<svg([^>]*)>", lambda match: f"{opening}{match[1]}>{style}", inline, count=1) + "\n")


def _write_png(result: PasskeyResult, path: Path) -> None:
    light = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", _palette().partition("@media")[0]))
    colours = {stand_in: light[name] for stand_in, name in _STAND_INS.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    with svg.drawing(*_size(result)) as figure, matplotlib.rc_context():
        settings = matplotlib.rcParams
        settings.update({key: colours[value] for key, value in settings.items() if value in tuple(colours)})
        _draw(figure, result, colours)
        try:
            figure.savefig(temporary, format="png", dpi=144, facecolor=colours[svg.SURFACE])
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _palette() -> str:
    """The custom properties of the report's page, in light and dark."""
    css = resources.files("exsel.report").joinpath("report.css").read_text(encoding="utf-8")
    return css[: css.index("*, *::before")]


def _size(result: PasskeyResult) -> tuple[int, int]:
    return 90 + _FIELD_WIDTH * max(4, len(result.lengths)), 95 + _FIELD_HEIGHT * len(result.depths)


def _draw(figure: Figure, result: PasskeyResult, colours: Mapping[str, str]) -> None:
    axes = figure.add_subplot()
    for column, row_of_length in enumerate(result.accuracy):
        for row, share in enumerate(row_of_length):
            _field(axes, column, row, share, colours)
    axes.set_xlim(-0.5, len(result.lengths) - 0.5)
    axes.set_ylim(len(result.depths) - 0.5, -0.5)
    axes.set_xticks(range(len(result.lengths)), [f"{length:,}" for length in result.lengths])
    axes.set_yticks(range(len(result.depths)), [f"{depth:.4g}" for depth in result.depths])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("depth of the key")
    axes.set_title(f"Passkeys found, of {result.samples} in each field", fontsize=10.5, loc="left")


def _field(axes: Axes, column: int, row: int, share: float, colours: Mapping[str, str]) -> None:
    # The border keeps a field visible in which no key was found.
    place, extent = (column - 0.47, row - 0.45), (0.94, 0.9)
    axes.add_patch(Rectangle(place, *extent, facecolor=colours[svg.SERIES[1]], alpha=share, linewidth=0))
    axes.add_patch(Rectangle(place, *extent, fill=False, edgecolor=colours[svg.GRID], linewidth=0.8))
    ink = colours[svg.SURFACE if share > 0.6 else svg.INK]
    axes.text(column, row, f"{share:.0%}", color=ink, ha="center", va="center", fontsize=10)
