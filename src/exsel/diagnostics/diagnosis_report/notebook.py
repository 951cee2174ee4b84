"""A diagnosis in a notebook: a table by layer that takes the notebook's own colours."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from exsel.diagnostics.diagnosis_report.diagnosed_models import (
    METRIC_OF,
    DiagnosedModel,
    diagnosed_models,
    diagnosis_headline,
    measured,
    qualifications,
    shown,
    size_of,
)
from exsel.report.formatting import compact
from exsel.report.notebook_table import notebook_table

# Under these numbers a bar shows their size, from 0 to 1 of either sign.
_WITH_BAR = ("similarity", "similarity_after", "centred_similarity", "value_similarity", "self_weight", "sink_mass")
_LEFT_OUT = ("entropy", "token_norm", "strength")


def notebook_html(record: Mapping[str, Any]) -> str:
    """A sentence and a table as HTML without a script, an id or anything from elsewhere."""
    (model,) = models = diagnosed_models(record)
    names = [name for name in measured(models, METRIC_OF) if name not in _LEFT_OUT]
    about = f"{model.name} · {compact(record['model'].get('parameters'))} parameters · {size_of(record['data'])}"
    left_out = [f"{each['name']} is left out: {each['reason']}" for each in record["left_out"]]
    return notebook_table(
        diagnosis_headline(models),
        [qualifications(models), about, *record["notes"], *left_out],
        ["Layer", *(METRIC_OF[name].title for name in names)],
        ((str(layer["layer"]), (_cell(model, layer, name) for name in names)) for layer in model.layers),
        last="<p>Means over tokens and heads. <code>diagnosis.write(folder)</code> makes a report.</p>",
    )


def _cell(model: DiagnosedModel, layer: Mapping[str, Any], name: str) -> str:
    found = model.metric(layer, name)
    if found is None:
        return f'<td title="{escape(layer["gaps"].get(name, "nothing was counted"))}">–</td>'
    bar, mean = "", float(found["mean"])
    if name in _WITH_BAR:
        below = ' class="exsel-below"' if mean < 0 else ""
        bar = f'<span class="exsel-bar"><i{below} style="width:{min(1.0, abs(mean)):.0%}"></i></span>'
    return f"<td>{shown(mean)}{bar}</td>"
