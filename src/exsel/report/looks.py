"""How everything that has a name looks in every figure: one table of colours and markers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from exsel.report.charts import Drawable, labels_of


class Palette(NamedTuple):
    """The colours of a page, in the words of its style sheet."""

    ink: str
    muted: str
    grid: str
    surface: str
    series: tuple[str, ...]


#: Figures of a page are drawn with these colours, which are then replaced by the page's custom properties: one SVG
#: serves light mode, dark mode and print.
STAND_INS = Palette("#010101", "#020202", "#030303", "#040404", tuple(f"#05000{slot}" for slot in range(8)))
#: The custom property of each stand-in.
PROPERTIES = {getattr(STAND_INS, name): f"--{name}" for name in ("ink", "muted", "grid", "surface")} | {
    colour: f"--series-{slot}" for slot, colour in enumerate(STAND_INS.series)
}

# Known names have the same look in every figure: variants, what the papers compare them with, the forms that are
# measured. Two names share a look only where no figure shows both.
_KNOWN: dict[str, tuple[int, str]] = {
    "baseline": (0, "o"),
    "plain": (0, "o"),  # the baseline in the words of the second paper
    "exclusive": (1, "s"),
    "selective": (2, "^"),
    "exclusive+selective": (3, "D"),
    "exclusive + selective": (3, "D"),
    "learned strength": (4, "v"),
    "masked diagonal": (5, "P"),
    "common direction removed": (6, "X"),
    "output gate": (7, ">"),
    "constant": (4, "<"),
    "constant temperature": (4, "<"),
    "Scalable-Softmax": (5, "p"),
    "YaRN's temperature": (6, "h"),
    "naive exclusive": (2, "^"),
    "naive exclusive+selective": (4, "v"),
    "eager normalize": (0, "o"),
    "compiled normalize": (1, "s"),
    "compiled dot": (2, "^"),
    "exsel sdpa": (4, "v"),
    "exsel reference": (5, "<"),
}
# What is not ours is drawn in ink: published numbers, and what mathematics says.
_REFERENCES = ("published", "paper", "bound", "theory", "exact", "target")
_REFERENCE_MARKERS = "_x+|1"
_MARKERS = "os^DvP><Xph"


class Look(NamedTuple):
    """The colour and marker of a label; without a number of a colour it is drawn in ink."""

    label: str
    slot: int | None
    marker: str

    def colour(self, palette: Palette) -> str:
        """The colour in a palette."""
        return palette.ink if self.slot is None else palette.series[self.slot]

    @property
    def css_colour(self) -> str:
        """The colour's name in a page's style sheet."""
        return PROPERTIES[self.colour(STAND_INS)]

    @property
    def path(self) -> str:
        """The marker as an SVG path around (0, 0), for the legend of a page."""
        from matplotlib.markers import MarkerStyle
        from matplotlib.transforms import Affine2D

        marker = MarkerStyle(self.marker)
        path = marker.get_path().transformed(marker.get_transform() + Affine2D().scale(6.5, -6.5))
        letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
        segments = path.iter_segments(simplify=False, curves=True)
        return "".join(
            letters[int(code)] + " ".join(f"{number:.2f}" for number in points if code != 79)
            for points, code in segments
        )


def look(label: str, slot: int) -> Look:
    """The look of a colour's number, from 0 to 7, with the marker that goes with it."""
    return Look(label, slot, _MARKERS[slot])


def looks_of(drawables: Iterable[Drawable]) -> dict[str, Look]:
    """A look for each label of figures that belong together; see :func:`looks_of_labels`."""
    return looks_of_labels([labels_of(drawable) for drawable in drawables])


def looks_of_labels(groups: Sequence[Sequence[str]]) -> dict[str, Look]:
    """A look for each label, different from all others while there are any left.

    A label that is not in the table gets a look from its own letters, which is constant while no two labels of a group
    take the same colour.

    Args:
        groups: the labels of each figure. Those of one figure have different colours where there are enough.
    """
    found: dict[str, Look] = {}
    ordered = list(dict.fromkeys(label for group in groups for label in group))
    for label in ordered:
        if label in _KNOWN:
            found[label] = Look(label, *_KNOWN[label])
        elif label.lower().startswith(_REFERENCES):
            count = sum(each.slot is None for each in found.values())
            found[label] = Look(label, None, _REFERENCE_MARKERS[count % len(_REFERENCE_MARKERS)])
    for label in ordered:
        if label not in found:
            first = zlib.crc32(label.encode())
            beside = {other for group in groups if label in group for other in group}
            taken = [each.slot for other, each in found.items() if other in beside]
            slots = [(first + step) % len(STAND_INS.series) for step in range(len(STAND_INS.series))]
            slot = min(slots, key=taken.count)  # the first of those that are taken least
            used = {each.marker for each in found.values() if each.slot == slot}
            markers = [marker for marker in _MARKERS if marker not in used]
            found[label] = Look(label, slot, markers[first % len(markers)] if markers else _MARKERS[0])
    return found
