"""The picture of passkey retrieval: a field for each length and depth, the fuller the more keys were found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from exsel.errors import ExselError
from exsel.evaluation.retrieval import PasskeyResult
from exsel.report import svg
from exsel.report.series import write_png, write_svg

#: The kinds of picture, by the suffix of the file.
SUFFIXES = (".svg", ".png")
_FIELD_WIDTH, _FIELD_HEIGHT = 62, 34


def write_picture(result: PasskeyResult, path: Path) -> None:
    """Draw the accuracy by length and depth.

    Args:
        result: what to draw.
        path: ``.svg``, which follows the reader's light or dark mode, or ``.png`` on white.

    Raises:
        ExselError: another suffix.
        OSError: the file cannot be written; an older one stays as it was.
    """
    draw = partial(_draw, result=result)
    if path.suffix == ".svg":
        label = f"Share of passkeys found by length and depth: {result.mean:.0%} of all."
        write_svg(path, _size(result), draw, name="passkey", label=label)
    elif path.suffix == ".png":
        write_png(path, _size(result), draw)
    else:
        raise ExselError(f"{path}: a picture's name ends with {' or '.join(SUFFIXES)}")


def _size(result: PasskeyResult) -> tuple[int, int]:
    return 90 + _FIELD_WIDTH * max(4, len(result.lengths)), 95 + _FIELD_HEIGHT * len(result.depths)


def _draw(figure: Figure, colours: Mapping[str, str], result: PasskeyResult) -> None:
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
