"""The report as HTML: gathers what the templates show. Needs matplotlib and Jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from exsel.diagnostics.report import figures, token_text
from exsel.diagnostics.report.definitions import definitions
from exsel.diagnostics.report.diagnosed_models import (
    CATALOGUE,
    DiagnosedModel,
    difference,
    measured,
    same_text,
    shown,
    size_of,
)
from exsel.diagnostics.report.drawing import Drawing
from exsel.diagnostics.report.sentences import sentence
from exsel.report import formatting, templates
from exsel.report.facts import facts
from exsel.report.series import Picture, Series

_PACKAGE = "exsel.diagnostics.report"
_TILES = (
    ("similarity", "mean cosine of attention's output and the token's own value"),
    ("similarity_after", "of it in what reaches the output projection, after the exclusive projection"),
    ("centred_similarity", "of it without the direction that all values share"),
    ("self_weight", "of a token's attention weight is on itself"),
    ("sink_mass", "of a later token's attention weight is on the first token"),
    ("query_temperature", "mean inverse temperature of queries"),
)
_MOST_TILES = 4
_FACTS = {"model": "Model", "data": "Data", "machine": "Machine and versions"}


class Tile(NamedTuple):
    """One of the large numbers under the headline."""

    value: str
    label: str


class Section(NamedTuple):
    """Figures that belong together."""

    name: str
    title: str
    text: str
    holds: Callable[[str, str], bool]
    legend: list[Series]
    pictures: list[Picture]


class Cell(NamedTuple):
    """A number in the table and what is said under it."""

    value: str
    note: str


class Line(NamedTuple):
    """One line of the table: of a layer of one model, or of what two differ by."""

    layer: str
    label: str
    look: Series | None
    cells: list[Cell]


def render(sides: Sequence[DiagnosedModel], drawings: Sequence[Drawing]) -> str:
    """Return the report as one HTML document that loads nothing from elsewhere.

    Args:
        sides: one model, or two.
        drawings: of :func:`exsel.diagnostics.report.figures.drawings`.
    """
    names = measured(sides, CATALOGUE)
    return _template("diagnosis.html.j2").render(
        **_shared(sides),
        headline=sentence(sides),
        tiles=_tiles(sides),
        looks=figures.model_looks(sides) if len(sides) == 2 else [],
        by_depth=figures.is_by_depth(sides),
        sections=_sections(sides, drawings),
        columns=[CATALOGUE[name] for name in names],
        lines=_lines(sides, names),
        sides=sides,
        gaps=[side.gaps() for side in sides],
        notes=_notes(sides),
        definitions=definitions(),
        facts=[facts(side.diagnosis.to_dict(), _FACTS) for side in sides],
        command=sides[0].diagnosis.command,
    )


def render_tokens(sides: Sequence[DiagnosedModel]) -> str:
    """Return the text shaded token by token as a page of its own; see :func:`has_tokens`."""
    return _template("tokens.html.j2").render(**_shared(sides))


def has_tokens(sides: Sequence[DiagnosedModel]) -> bool:
    """Whether there is a text to show."""
    return token_text.reader(sides) is not None


def _template(name: str) -> jinja2.Template:
    return templates.environment(_PACKAGE).get_template(name)


def _shared(sides: Sequence[DiagnosedModel]) -> dict[str, Any]:
    reader = token_text.reader(sides)
    script = "" if reader is None else resources.files(_PACKAGE).joinpath("tokens.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "version": sides[0].diagnosis.exsel_version,
        "subject": _subject(sides),
        "reader": reader,
        "shades": range(token_text.SHADES + 1),
        "data": "" if reader is None else Markup(reader.data),
        # As it is: the policy allows what has this hash and nothing else.
        "script": Markup(script),
        "script_hash": f"sha256-{digest}" if script else "",
    }


def _subject(sides: Sequence[DiagnosedModel]) -> list[str]:
    parts = []
    for side in sides:
        parameters = side.diagnosis.model.get("parameters")
        layers = len(side.layers)
        parts.append(
            f"{side.name}: {formatting.compact(parameters)} parameters, {layers} layer{'s' if layers != 1 else ''}"
        )
    data = sides[0].diagnosis.data
    parts.append(str(data.get("description")))
    return [*parts, size_of(data)]


def _tiles(sides: Sequence[DiagnosedModel]) -> list[Tile]:
    tiles = []
    if len(sides) == 2:
        reaching = [side.reaching() for side in sides]
        if None not in reaching:
            label = "mean cosine of what reaches the output projection and the token's own value"
            numbers = f"{shown(reaching[0])} against {shown(reaching[1])}"
            tiles.append(Tile(difference(*reaching), f"{numbers}: {label}"))
    for name, label in _TILES:
        means = [side.mean(name) for side in sides]
        if means[0] is None or (len(sides) == 2 and means[1] is None):
            continue
        if len(sides) == 1:
            tiles.append(Tile(shown(means[0]), label))
        else:
            tiles.append(Tile(difference(*means), f"{shown(means[0])} against {shown(means[1])}: {label}"))
    return tiles[:_MOST_TILES]


def _sections(sides: Sequence[DiagnosedModel], drawings: Sequence[Drawing]) -> list[Section]:
    models = figures.model_looks(sides) if len(sides) == 2 else []
    by_measure = figures.measure_looks(sides) if len(sides) == 1 else models
    found = [
        Section(
            "bias",
            "Attention similarity bias",
            "How much of a head's output merely repeats the token's own value. At 1 attention returns the token to "
            "itself; at 0 it carries only what comes from the context. Part of it can be one direction that all "
            "values share, which the similarity without the common direction leaves out.",
            lambda what, where: where == "layers" and (what == "similarities" or what in figures.SIMILARITIES),
            by_measure,
            [],
        ),
        Section(
            "places",
            "By head and by position",
            "Which heads copy the token itself, and where in the text they do.",
            lambda what, where: where != "layers",
            models,
            [],
        ),
        Section(
            "spread",
            "Where attention goes",
            "Over how many tokens a row of attention weights is spread, and how much of it rests on the first token.",
            lambda what, where: where == "layers" and what in figures.SPREAD,
            models,
            [],
        ),
        Section(
            "mechanisms",
            "Strengths and temperatures",
            "What the mechanisms have learned: how much of the own value's direction the exclusive projection takes "
            "out, and by which inverse temperatures selective attention multiplies (higher is spikier).",
            lambda what, where: where == "layers" and (what == "strength" or what in figures.TEMPERATURES),
            models,
            [],
        ),
        Section(
            "weights",
            "What the weights let through",
            "How strongly the query and key weights alone can select, without rotation and temperatures.",
            lambda what, where: where == "layers" and what in figures.WEIGHTS,
            models,
            [],
        ),
    ]
    for drawing in drawings:
        what, where = drawing.name.split("-")[:2]
        next(section for section in found if section.holds(what, where)).pictures.append(drawing.picture())
    return [section for section in found if section.pictures]


def _lines(sides: Sequence[DiagnosedModel], names: Sequence[str]) -> list[Line]:
    looks: Sequence[Series | None] = figures.model_looks(sides) if len(sides) == 2 else [None]
    numbers = sorted({layer["layer"] for side in sides for layer in side.layers})
    lines = []
    for number in [None, *numbers]:
        means = [[_mean(side, number, name) for name in names] for side in sides]
        first = "all" if number is None else str(number)
        for side, look, row in zip(sides, looks, means, strict=True):
            cells = [Cell(shown(mean), _heads(side, number, name)) for name, mean in zip(names, row, strict=True)]
            lines.append(Line(first, side.name if look else "", look, cells))
            first = ""
        if len(sides) == 2:
            gaps = [Cell(difference(*pair), "") for pair in zip(*means, strict=True)]
            lines.append(Line("", "difference", None, gaps))
    return lines


def _layer(side: DiagnosedModel, number: int) -> dict[str, Any] | None:
    return next((layer for layer in side.layers if layer["layer"] == number), None)


def _mean(side: DiagnosedModel, number: int | None, name: str) -> float | None:
    if number is None:
        return side.mean(name)
    layer = _layer(side, number)
    found = None if layer is None else side.metric(layer, name)
    return None if found is None else float(found["mean"])


def _heads(side: DiagnosedModel, number: int | None, name: str) -> str:
    """From the lowest to the highest head."""
    layer = None if number is None else _layer(side, number)
    found = None if layer is None else side.metric(layer, name)
    if found is None or len(found["heads"]) < 2:
        return ""
    low, high = shown(min(found["heads"])), shown(max(found["heads"]))
    return low if low == high else f"{low} … {high}"


def _notes(sides: Sequence[DiagnosedModel]) -> list[str]:
    notes = [note if len(sides) == 1 else f"{side.name}: {note}" for side in sides for note in side.diagnosis.notes]
    if len(sides) == 2 and not same_text(sides):
        notes.insert(0, "The models read different tokens: their tokenizers or texts differ.")
    if figures.is_by_depth(sides):
        notes.insert(
            0,
            "The models have different numbers of layers: figures show layers at their relative depth, from 0 (input) "
            "to 1 (output), and the table by number.",
        )
    return notes
