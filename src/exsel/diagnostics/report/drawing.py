"""A figure of the report, for the page and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from exsel.report import svg
from exsel.report.series import Draw, Picture, Series, write_pdf, write_png, write_svg

WIDTH, HEIGHT = 360, 255
# Of a file's edge.
_PADDING = 8


@dataclass(frozen=True)
class Drawing:
    """What to draw, and what is said of it.

    Args:
        name: of its files.
        title: over it.
        caption: under it, with its numbers.
        draw: into a figure.
        looks: of its lines, for the legend; the page has one of its own.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    looks: Sequence[Series] = ()

    def picture(self) -> Picture:
        """For the page."""
        with svg.drawing(WIDTH, HEIGHT) as figure:
            self.draw(figure, {stand_in: stand_in for stand_in in svg.PROPERTIES})
            drawn = svg.inline(figure, name=self.name, label=f"{self.title}. {self.caption}")
        return Picture(self.name, self.title, drawn, self.caption)

    def write(self, folder: Path) -> list[str]:
        """Write the figure with its title and legend as SVG, PNG and PDF; returns the files' names."""
        size = (WIDTH + 60, HEIGHT + 45 + 18 * len(self.looks))

        def draw(figure: Figure, colours: Mapping[str, str]) -> None:
            figure.set_layout_engine("constrained", w_pad=_PADDING / 72, h_pad=_PADDING / 72)
            figure.suptitle(self.title, fontsize=11, x=0.02, ha="left")
            self.draw(figure, colours)
            if self.looks:
                handles = [
                    Line2D([], [], color=colours[look.colour], marker=look.marker, label=look.variant)
                    for look in self.looks
                ]
                figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)

        paths = [folder / f"{self.name}{kind}" for kind in (".svg", ".png", ".pdf")]
        write_svg(paths[0], size, draw, name=self.name, label=f"{self.title}. {self.caption}")
        write_png(paths[1], size, draw)
        write_pdf(paths[2], size, draw)
        return [path.name for path in paths]
