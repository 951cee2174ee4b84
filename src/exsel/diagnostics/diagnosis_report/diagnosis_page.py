"""The pages of the report: gathers what their templates show. Needs matplotlib and Jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from markupsafe import Markup

from exsel.diagnostics.diagnosis_report.diagnosed_models import (
    METRIC_OF,
    DiagnosedModel,
    diagnosis_headline,
    difference,
    measured,
    qualifications,
    shown,
    size_of,
)
from exsel.diagnostics.diagnosis_report.diagnosis_charts import is_by_depth, looks_of_models
from exsel.diagnostics.diagnosis_report.token_text import SHADES, token_texts
from exsel.diagnostics.metrics import METRICS
from exsel.report import formatting, templates
from exsel.report.charts import Drawable, labels_of
from exsel.report.looks import Look
from exsel.report.picture import page_svg

_PACKAGE = "exsel.diagnostics.diagnosis_report"
_TILES = {
    "similarity": "mean cosine of attention's output and the token's own value",
    "similarity_after": "of it in what reaches the output projection, after the exclusive projection",
    "centred_similarity": "of it without the direction that all values share",
    "self_weight": "of a token's attention weight is on itself",
    "sink_mass": "of a later token's attention weight is on the first token",
    "query_temperature": "mean inverse temperature of queries",
}
_MOST_TILES = 4
_FACTS = {"model": "Model", "data": "Data", "machine": "Machine and versions"}


class Line(NamedTuple):
    """A line of the table: of one layer of a model, or of the difference of two."""

    layer: str  #: its number, or ``all``; empty below a line of the same layer
    label: str  #: the model's name, where there are two
    look: Look | None  #: the model's look, where there are two
    cells: list[tuple[str, str]]  #: for each metric a number, and what stands below it


def render_diagnosis(models: Sequence[DiagnosedModel], sections: Mapping[str, Sequence[Drawable]]) -> str:
    """The report as one HTML document that loads nothing, with the figures of each section."""
    looks = looks_of_models(models)
    legends = {}
    for name, figures in sections.items():
        labels = dict.fromkeys(label for figure in figures for label in labels_of(figure))
        legends[name] = [looks[label] for label in labels] if len(labels) > 1 else []
    names = measured(models, [metric.name for metric in METRICS])
    return _render(
        "diagnosis.html.j2",
        models,
        headline=diagnosis_headline(models),
        qualifications=qualifications(models),
        tiles=_tiles(models),
        notes=_notes(models),
        pictures={name: [(each, page_svg(each, looks)) for each in figures] for name, figures in sections.items()},
        legends=legends,
        columns=[METRIC_OF[name] for name in names],
        lines=_lines(models, names),
        metrics=METRICS,
        facts=[templates.facts(model.record, _FACTS) for model in models],
    )


def render_tokens(models: Sequence[DiagnosedModel]) -> str:
    """The text shaded token by token as a page of its own; empty where there is no text."""
    return _render("tokens.html.j2", models) if token_texts(models) else ""


def _render(template: str, models: Sequence[DiagnosedModel], **content: Any) -> str:
    texts = token_texts(models)
    script = resources.files(_PACKAGE).joinpath("tokens.js").read_text(encoding="utf-8") if texts else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates.environment(_PACKAGE)
        .get_template(template)
        .render(
            version=models[0].record["exsel_version"],
            subject=_subject(models),
            models=models,
            reader=texts,
            shades=range(SHADES + 1),
            data=texts.data if texts else "",
            # The page's policy allows the script of this hash and no other.
            script=Markup(script),
            script_hash=f"sha256-{digest}" if script else "",
            **content,
        )
    )


def _subject(models: Sequence[DiagnosedModel]) -> list[str]:
    data, parts = models[0].record["data"], []
    for model in models:
        parameters, layers = formatting.compact(model.record["model"].get("parameters")), len(model.layers)
        parts.append(f"{model.name}: {parameters} parameters, {layers} layer{'s' if layers != 1 else ''}")
    return [*parts, str(data.get("description")), size_of(data)]


def _tiles(models: Sequence[DiagnosedModel]) -> list[tuple[str, str]]:
    """Large numbers, each with what it is."""
    means = [([model.mean(name) for model in models], label) for name, label in _TILES.items()]
    if len(models) == 1:
        return [(shown(mean), label) for (mean,), label in means if mean is not None][:_MOST_TILES]
    reaching = "mean cosine of what reaches the output projection and the token's own value"
    return [
        (difference(first, second), f"{shown(first)} against {shown(second)}: {label}")
        for (first, second), label in [([model.reaching() for model in models], reaching), *means]
        if first is not None and second is not None
    ][:_MOST_TILES]


def _lines(models: Sequence[DiagnosedModel], names: Sequence[str]) -> list[Line]:
    """The table: the means over all layers, then layer by layer."""
    looks = looks_of_models(models)
    by_number = [{layer["layer"]: layer for layer in model.layers} for model in models]
    numbers = sorted({number for layers in by_number for number in layers})
    is_pair, lines = len(models) == 2, []
    for number in (None, *numbers):
        means: list[list[float | None]] = []
        for model, layers in zip(models, by_number, strict=True):
            layer = layers.get(number, {"metrics": {}, "strength": None})
            found = [model.metric(layer, name) for name in names]
            means.append([None if metric is None else metric["mean"] for metric in found])
            if number is None:
                means[-1] = [model.mean(name) for name in names]
            cells = [(shown(mean), _heads(metric)) for mean, metric in zip(means[-1], found, strict=True)]
            first = "" if len(means) == 2 else "all" if number is None else str(number)
            lines.append(Line(first, model.name if is_pair else "", looks[model.name] if is_pair else None, cells))
        if is_pair:
            gaps = [(difference(*pair), "") for pair in zip(*means, strict=True)]
            lines.append(Line("", "difference", None, gaps))
    return lines


def _heads(metric: Mapping[str, Any] | None) -> str:
    """From the lowest to the highest head."""
    if metric is None or len(metric["heads"]) < 2:
        return ""
    return " … ".join(dict.fromkeys((shown(min(metric["heads"])), shown(max(metric["heads"])))))


def _notes(models: Sequence[DiagnosedModel]) -> list[str]:
    notes = []
    if is_by_depth(models):
        notes.append(
            "The models have different numbers of layers: figures show layers at their relative depth, from 0 (input) "
            "to 1 (output), and the table by number."
        )
    texts = [[picture["tokens"] for picture in model.record["pictures"]] for model in models]
    counts = [[model.record["data"].get(name) for name in ("sequences", "tokens")] for model in models]
    if texts[0] != texts[-1] or counts[0] != counts[-1]:
        notes.append("The models read different tokens: their tokenizers or texts differ.")
    prefixes = [""] if len(models) == 1 else [f"{model.name}: " for model in models]
    return notes + [
        prefix + note for prefix, model in zip(prefixes, models, strict=True) for note in model.record["notes"]
    ]
