"""The text of which each token is shaded by a number."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from exsel.diagnostics.diagnosis_report.diagnosed_models import METRIC_OF, DiagnosedModel
from exsel.diagnostics.metrics import PICTURED
from exsel.report.formatting import MISSING

Values = list[float | None]

#: The page holds the numbers of each head if they are no more than this, and of each layer likewise.
MOST_OF_HEADS, MOST_OF_LAYERS = 250_000, 500_000
#: The deepest shade; the lightest is 0.
SHADES = 8
# This share of the tokens lies beyond each end of the scale, so that outliers do not leave all others in one shade.
_BEYOND = 0.02

_MARKS = {" ": "·", "\t": "⇥", "\n": "↵", "\r": "␍", "": "∅"}
# Invisible characters that join others into one sign.
_JOINERS = "\u200c\u200d"


class Token(NamedTuple):
    """A token on the page: its text, place, shade (``None`` without a number), number, and the lines that end here."""

    text: str
    position: int
    shade: int | None
    value: str
    breaks: int


class ShadedText(NamedTuple):
    """A model's text in the shades of the first measure, and the ends of the scale."""

    label: str
    tokens: list[Token]
    low: str
    high: str


@dataclass(frozen=True)
class TokenTexts:
    """The texts of all models, and what the reader of the page can choose."""

    measure: str  #: the name of the one that is shown first
    measures: dict[str, str]  #: titles by name
    layers: list[int]  #: numbers; empty if the page holds only means over them
    heads: int  #: how many; 0 if the page holds only means over them
    texts: list[ShadedText]  #: one for each model
    has_difference: bool  #: whether the models read the same tokens, so that they can be compared token by token
    data: Markup  #: the numbers for the page's script, as JSON that is safe in a page
    note: str  #: what was left out of the page


def token_texts(models: Sequence[DiagnosedModel]) -> TokenTexts | None:
    """The first picture of each model; ``None`` where there is none."""
    pictures = {model.name: model.record["pictures"][0] for model in models if model.record["pictures"]}
    pictures = {name: picture for name, picture in pictures.items() if picture["layers"] and picture["tokens"]}
    if not pictures:
        return None
    layers = [layer for picture in pictures.values() for layer in picture["layers"]]
    names = [name for name in PICTURED if any(name in layer["values"] for layer in layers)]
    left_out, num_values = _left_out(list(pictures.values()))
    panels: list[dict[str, Any]] = [
        {"label": label, "measures": _measures(picture, left_out)} for label, picture in pictures.items()
    ]
    measure = _first_measure(names, panels)
    low, high = scale_of(panels, measure)
    texts = [
        _shaded(label, picture, panel["measures"].get(measure), low, high)
        for (label, picture), panel in zip(pictures.items(), panels, strict=True)
    ]
    tokens = [picture["tokens"] for picture in pictures.values()]
    titles = {name: METRIC_OF[name].title for name in names}
    note = (
        f"Single {' and '.join(left_out)} are left out here: {num_values:,} numbers would make the page slow. "
        "diagnostics.json has every number."
    )
    return TokenTexts(
        measure=measure,
        measures=titles,
        layers=[] if "layers" in left_out else sorted({layer["layer"] for layer in layers}),
        heads=0 if left_out else max(len(rows) for layer in layers for rows in layer["values"].values()),
        texts=texts,
        has_difference=len(tokens) == 2 and tokens[0] == tokens[1],
        data=htmlsafe_json_dumps({"panels": panels, "titles": titles}, separators=(",", ":"), allow_nan=False),
        note=note if left_out else "",
    )


def visible(token: str) -> str:
    """A token with marks for spaces and line ends, and codes for control characters."""
    if token in _MARKS:
        return _MARKS[token]
    shown = []
    for sign in token:
        category = unicodedata.category(sign)
        if sign in _MARKS or category == "Zs":
            shown.append(_MARKS.get(sign, "·"))
        elif category in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp") and not (sign in _JOINERS and len(token) > 1):
            shown.append(f"⟨{ord(sign):02X}⟩")
        else:
            shown.append(sign)
    return "".join(shown)


def rounded(value: float | None, decimals: int = 0) -> float | None:
    """Round to three digits, or to ``decimals`` where those are more."""
    if value is None:
        return None
    least = 2 - math.floor(math.log10(abs(value))) if value else 0
    short = round(value, max(least, decimals))
    return int(short) if short == int(short) else short


def scale_of(panels: Sequence[Mapping[str, Any]], measure: str) -> tuple[float, float]:
    """The ends of the scale of a measure, for the texts of all models."""
    rows = [panel["measures"][measure]["all"] for panel in panels if measure in panel["measures"]]
    return _ends([value for row in rows for value in row])


def shade(value: float, low: float, high: float) -> int:
    """A shade from 0 to :data:`SHADES`."""
    share = (value - low) / (high - low) if high > low else 0.0
    return math.floor(min(1.0, max(0.0, share)) * SHADES + 0.5)


def _ends(values: Values) -> tuple[float, float]:
    ordered = sorted(value for value in values if value is not None)
    last = len(ordered) - 1
    return (ordered[math.floor(_BEYOND * last)], ordered[math.ceil((1 - _BEYOND) * last)]) if ordered else (0.0, 0.0)


def _first_measure(names: Sequence[str], panels: Sequence[Mapping[str, Any]]) -> str:
    """A temperature if one differs from token to token in all texts, else the first measure that does."""
    for name in sorted(names, key=lambda name: not name.endswith("_temperature")):
        low, high = scale_of(panels, name)
        if low < high and all(name in panel["measures"] for panel in panels):
            return name
    return names[0]


def _left_out(pictures: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Which numbers are too many for the page (``layers``, ``heads``), and how many the page would hold."""
    rows = [(len(picture["tokens"]), rows) for picture in pictures for layer in picture["layers"]
            for rows in layer["values"].values()]  # fmt: skip
    num_heads = sum(tokens * len(heads) for tokens, heads in rows)
    if num_heads <= MOST_OF_HEADS:
        return [], num_heads
    is_long = sum(tokens for tokens, _ in rows) > MOST_OF_LAYERS
    return ["layers", "heads"] if is_long else ["heads"], num_heads


def _measures(picture: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By measure: its means over all layers and heads, by layer its means over the heads, and its heads."""
    measures: dict[str, dict[str, Any]] = {}
    for name in PICTURED:
        heads = {layer["layer"]: layer["values"][name] for layer in picture["layers"] if name in layer["values"]}
        if heads:
            layers = {layer: _means(rows) for layer, rows in heads.items()}
            whole = _means(list(layers.values()))
            low, high = _ends(whole)
            # A hundredth of the scale stays visible: temperatures of 1.151 and 1.158 differ.
            decimals = min(9, 2 - math.floor(math.log10(high - low))) if high > low else 0

            def short(row: Values, decimals: int = decimals) -> Values:
                return [rounded(value, decimals) for value in row]

            measures[name] = {
                "all": short(whole),
                "layers": {} if "layers" in left_out else {layer: short(row) for layer, row in layers.items()},
                "heads": {} if left_out else {layer: [short(row) for row in rows] for layer, rows in heads.items()},
            }
    return measures


def _means(rows: Sequence[Values]) -> Values:
    """The mean of each token over the rows that have a number."""
    columns = ([value for value in column if value is not None] for column in zip(*rows, strict=True))
    return [statistics.fmean(column) if column else None for column in columns]


def _shaded(
    label: str, picture: Mapping[str, Any], measure: Mapping[str, Any] | None, low: float, high: float
) -> ShadedText:
    values: Values = [None] * len(picture["tokens"]) if measure is None else measure["all"]
    tokens = [
        Token(
            visible(token),
            position,
            None if value is None else shade(value, low, high),
            _shown(value),
            token.count("\n"),
        )
        for token, position, value in zip(picture["tokens"], picture["positions"], values, strict=True)
    ]
    return ShadedText(label, tokens, _shown(low), _shown(high))


def _shown(value: float | None) -> str:
    return MISSING if value is None else f"{value:.15g}".replace("-", "−")
