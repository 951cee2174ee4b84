"""A text of which each token is shaded by a number. Needs nothing but Python."""

from __future__ import annotations

import json
import math
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exsel.diagnostics.metrics import PICTURED
from exsel.diagnostics.report.diagnosed_models import CATALOGUE, DiagnosedModel
from exsel.report.formatting import MISSING

Values = list[float | None]

#: A page holds each head's numbers up to so many in all, and each layer's up to so many.
MOST_OF_HEADS, MOST_OF_LAYERS = 250_000, 500_000
#: Shades, from none to the deepest.
SHADES = 8
# A few tokens that lie far out would leave all others in one shade: the scale ends where these shares lie beyond it.
_BEYOND = 0.02

_MARKS = {" ": "·", "\t": "⇥", "\n": "↵", "\r": "␍", "": "∅"}
# Invisible, but they hold together what is one sign to the eye.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Token:
    """One token on the page.

    Args:
        text: of the token, with marks in the place of what cannot be seen.
        position: in its sequence, from 1.
        shade: from 0 to :data:`SHADES`; ``None``: no number.
        value: as it is shown.
        breaks: how many lines end here.
    """

    text: str
    position: int
    shade: int | None
    value: str
    breaks: int


@dataclass(frozen=True)
class Shaded:
    """A text in the shades of one measure, before anyone has chosen another.

    Args:
        label: whose text.
        tokens: one after the other.
        low, high: the ends of the scale, as they are shown.
    """

    label: str
    tokens: list[Token]
    low: str
    high: str


@dataclass(frozen=True)
class Reader:
    """The texts of all models and what can be chosen.

    Args:
        measure: which is shown first, by name.
        measures: by name the title.
        layers: their numbers.
        heads: how many the page holds numbers of; 0: only means over heads.
        texts: one for each model.
        has_difference: whether the models read the same tokens, so that they can be compared one by one.
        data: for the script, as JSON that can stand in a page.
        note: what was left out of the page.
    """

    measure: str
    measures: dict[str, str]
    layers: list[int]
    heads: int
    texts: list[Shaded]
    has_difference: bool
    data: str
    note: str


def reader(sides: Sequence[DiagnosedModel]) -> Reader | None:
    """What a page shows of the first picture of each model; ``None``: there is none."""
    shown = [(side, side.diagnosis.pictures[0]) for side in sides if side.diagnosis.pictures]
    shown = [(side, picture) for side, picture in shown if picture["layers"] and picture["tokens"]]
    if not shown:
        return None
    names = [name for name in PICTURED if any(name in layer["values"] for _, p in shown for layer in p["layers"])]
    depth, note = _depth([picture for _, picture in shown])
    panels = [_panel(side.name, picture, depth) for side, picture in shown]
    measure = _first(names, panels)
    heads = max(
        (len(rows) for panel in panels for m in panel["measures"].values() for rows in m["heads"].values()), default=0
    )
    layers = sorted({layer["layer"] for _, picture in shown for layer in picture["layers"]} if depth != "all" else ())
    texts = [panel["tokens"] for panel in panels]
    titles = {name: CATALOGUE[name].title for name in names}
    held = [{"label": panel["label"], "measures": panel["measures"]} for panel in panels]
    return Reader(
        measure=measure,
        measures=titles,
        layers=layers,
        heads=heads,
        texts=[_shaded(panel, measure, scale_of(panels, measure)) for panel in panels],
        has_difference=len(panels) == 2 and texts[0] == texts[1],
        data=_script_json({"panels": held, "titles": titles}),
        note=note,
    )


def _first(names: Sequence[str], panels: Sequence[Mapping[str, Any]]) -> str:
    """The measure to begin with: a temperature, where it differs from token to token in all texts."""
    for name in sorted(names, key=lambda name: not name.endswith("_temperature")):
        low, high = scale_of(panels, name)
        if low < high and all(name in panel["measures"] for panel in panels):
            return name
    return names[0]


def visible(token: str) -> str:
    """A token with marks in the place of what one cannot see, and codes in that of what must not act."""
    if token in _MARKS:
        return _MARKS[token]
    shown = []
    for sign in token:
        if sign in _MARKS:
            shown.append(_MARKS[sign])
        elif sign in _JOINERS and len(token) > 1:
            shown.append(sign)
        elif unicodedata.category(sign) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"):
            shown.append(f"⟨{ord(sign):02X}⟩")
        elif unicodedata.category(sign) == "Zs":
            shown.append("·")
        else:
            shown.append(sign)
    return "".join(shown)


def rounded(value: float | None, decimals: int = 0) -> float | None:
    """To three digits, whole or with so many decimals where those are more: what a page shows and holds."""
    if value is None:
        return None
    least = 2 - math.floor(math.log10(abs(value))) if value else 0
    short = round(value, max(least, decimals))
    return int(short) if short == int(short) else short


def scale_of(panels: Sequence[Mapping[str, Any]], measure: str) -> tuple[float, float]:
    """The least and the most of all texts, but for the few tokens that lie far out."""
    return _ends(
        [
            value
            for panel in panels
            if measure in panel["measures"]
            for value in panel["measures"][measure]["all"]
            if value is not None
        ]
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    ordered, last = sorted(values), len(values) - 1
    return ordered[math.floor(_BEYOND * last)], ordered[math.ceil((1 - _BEYOND) * last)]


def shade(value: float, low: float, high: float) -> int:
    """From 0 to :data:`SHADES`."""
    if high <= low:
        return 0
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return math.floor(share * SHADES + 0.5)


def _depth(pictures: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """How much of the numbers the page holds, and what to say of the rest."""
    heads = layers = 0
    for picture in pictures:
        for layer in picture["layers"]:
            for rows in layer["values"].values():
                heads += len(rows) * len(picture["tokens"])
                layers += len(picture["tokens"])
    elsewhere = "diagnostics.json has every number."
    if heads <= MOST_OF_HEADS:
        return "heads", ""
    if layers <= MOST_OF_LAYERS:
        return "layers", f"Single heads are left out here: {heads:,} numbers would make the page slow. {elsewhere}"
    return "all", f"Single layers and heads are left out here: {heads:,} numbers would make the page slow. {elsewhere}"


def _panel(label: str, picture: Mapping[str, Any], depth: str) -> dict[str, Any]:
    measures: dict[str, dict[str, Any]] = {}
    for name in PICTURED:
        by_layer = {layer["layer"]: layer["values"][name] for layer in picture["layers"] if name in layer["values"]}
        means = {layer: _means(rows) for layer, rows in by_layer.items()}
        if not means:
            continue
        whole = _means(list(means.values()))
        decimals = _decimals(whole)
        measures[name] = {
            "all": _rounded(whole, decimals),
            "layers": {layer: _rounded(row, decimals) for layer, row in means.items()} if depth != "all" else {},
            "heads": {layer: [_rounded(row, decimals) for row in rows] for layer, rows in by_layer.items()}
            if depth == "heads"
            else {},
        }
    return {"label": label, "tokens": picture["tokens"], "positions": picture["positions"], "measures": measures}


def _means(rows: Sequence[Sequence[float | None]]) -> Values:
    """Token by token, over the rows that have a number."""
    columns = ([value for value in column if value is not None] for column in zip(*rows, strict=True))
    return [statistics.fmean(column) if column else None for column in columns]


def _decimals(values: Values) -> int:
    """So many as tell a hundredth of the scale apart: temperatures of 1.151 and 1.158 are two."""
    low, high = _ends([value for value in values if value is not None])
    return min(9, 2 - math.floor(math.log10(high - low))) if high > low else 0


def _rounded(row: Sequence[float | None], decimals: int) -> Values:
    return [rounded(value, decimals) for value in row]


def _shaded(panel: Mapping[str, Any], measure: str, scale: tuple[float, float]) -> Shaded:
    found = panel["measures"].get(measure)
    values: Values = [None] * len(panel["tokens"]) if found is None else found["all"]
    tokens = [
        Token(
            text=visible(token),
            position=position,
            shade=None if value is None else shade(value, *scale),
            value=_shown(value),
            breaks=token.count("\n"),
        )
        for token, position, value in zip(panel["tokens"], panel["positions"], values, strict=True)
    ]
    low, high = scale
    return Shaded(panel["label"], tokens, _shown(low), _shown(high))


def _shown(value: float | None) -> str:
    return MISSING if value is None else f"{value:.15g}".replace("-", "−")


def _script_json(value: object) -> str:
    """JSON in which nothing ends a script element or opens a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
