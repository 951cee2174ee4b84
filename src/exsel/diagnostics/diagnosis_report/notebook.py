"""A diagnosis in a notebook: a table by layer that takes the notebook's own colours."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from exsel.diagnostics.diagnosis_report.diagnosed_models import (
    METRIC_OF,
    DiagnosedModel,
    diagnosed_models,
    measured,
    shown,
    size_of,
)
from exsel.diagnostics.diagnosis_report.diagnosis_headline import diagnosis_headline, qualifications
from exsel.report.formatting import compact

# Under these numbers a bar shows their size, from 0 to 1 of either sign.
_WITH_BAR = ("similarity", "similarity_after", "centred_similarity", "value_similarity", "self_weight", "sink_mass")
_LEFT_OUT = ("entropy", "token_norm", "strength")


def notebook_html(record: Mapping[str, Any]) -> str:
    """A sentence and a table as HTML without a script, an id or anything from elsewhere."""
    (model,) = models = diagnosed_models(record)
    names = [name for name in measured(models, METRIC_OF) if name not in _LEFT_OUT]
    style = resources.files("exsel.diagnostics.diagnosis_report").joinpath("notebook.css").read_text(encoding="utf-8")
    about = f"{model.name} · {compact(record['model'].get('parameters'))} parameters · {size_of(record['data'])}"
    heading = "".join(f'<th scope="col">{escape(METRIC_OF[name].title)}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{layer["layer"]}</th>{"".join(_cell(model, layer, name) for name in names)}</tr>'
        for layer in model.layers
    )
    left_out = [f"{each['name']} is left out: {each['reason']}" for each in record["left_out"]]
    paragraphs = [qualifications(models), about, *record["notes"], *left_out]
    return (
        f'<div class="exsel-diagnosis"><style>{style}</style><p><b>{escape(diagnosis_headline(models))}</b></p>'
        f"{''.join(f'<p>{escape(text)}</p>' for text in paragraphs if text)}"
        f'<div class="exsel-scroll" tabindex="0"><table><thead><tr><th scope="col">Layer</th>{heading}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        "<p>Means over tokens and heads. <code>diagnosis.write(folder)</code> makes a report.</p></div>"
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
