"""A diagnosis in a notebook: a table by layer that takes the notebook's own colours. Needs nothing but Python."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from exsel.diagnostics.report.diagnosed_models import (
    CATALOGUE,
    DiagnosedModel,
    diagnosed_models,
    measured,
    shown,
    size_of,
)
from exsel.diagnostics.report.sentences import sentence
from exsel.report.formatting import compact

if TYPE_CHECKING:
    from exsel.diagnostics.diagnosis import Diagnosis

_COLUMNS = (
    "similarity",
    "similarity_after",
    "centred_similarity",
    "value_similarity",
    "self_weight",
    "spikiness",
    "effective_tokens",
    "sink_mass",
    "query_temperature",
    "key_temperature",
    "value_temperature",
    "operator_norm",
)
# Of these a bar shows the size, from 0 to 1 of either sign.
_BARS = ("similarity", "similarity_after", "centred_similarity", "value_similarity", "self_weight", "sink_mass")

# Everything is relative to the colour of the notebook's own text, so that it suits light and dark ones.
_STYLE = """
.exsel-diagnosis { max-width: 100%; color: inherit; font-size: 13px; line-height: 1.45; }
.exsel-diagnosis p { margin: 0 0 .5em; max-width: 60em; }
.exsel-diagnosis .exsel-scroll {
  overflow: auto; max-height: 26em; margin-bottom: .5em; border: 1px solid rgba(128, 128, 128, .4);
}
.exsel-diagnosis table {
  border-collapse: collapse; margin: 0; color: inherit; font-size: inherit; font-variant-numeric: tabular-nums;
}
.exsel-diagnosis th, .exsel-diagnosis td {
  padding: .3em .7em; border: 0; background: none; color: inherit; text-align: right; vertical-align: top;
}
.exsel-diagnosis thead th { max-width: 9em; white-space: normal; vertical-align: bottom; font-weight: 600; }
.exsel-diagnosis tbody tr { border-top: 1px solid rgba(128, 128, 128, .3); background: none; }
.exsel-diagnosis .exsel-bar { display: block; height: 4px; min-width: 4.5em; background: rgba(128, 128, 128, .25); }
.exsel-diagnosis .exsel-bar i { display: block; height: 4px; background: #2f86d6; }
.exsel-diagnosis .exsel-bar i.exsel-below { background: #d2691e; }
"""


def notebook_html(diagnosis: Diagnosis) -> str:
    """A sentence and a table as HTML without a script, an id or anything from elsewhere."""
    side = diagnosed_models(diagnosis)[0]
    names = measured([side], _COLUMNS)
    model, data = diagnosis.model, diagnosis.data
    about = [
        escape(side.name),
        f"{compact(model.get('parameters'))} parameters",
        size_of(data),
    ]
    heading = "".join(f'<th scope="col">{escape(CATALOGUE[name].title)}</th>' for name in names)
    rows = "".join(_row(side, layer, names) for layer in side.layers)
    notes = [*diagnosis.notes, *(f"{each['name']} is left out: {each['reason']}" for each in diagnosis.left_out)]
    return (
        f'<div class="exsel-diagnosis"><style>{_STYLE}</style>'
        f"<p><b>{escape(sentence([side]))}</b></p><p>{' · '.join(about)}</p>"
        f'<div class="exsel-scroll" tabindex="0"><table><thead><tr><th scope="col">Layer</th>{heading}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f"{''.join(f'<p>{escape(note)}</p>' for note in notes)}"
        "<p>Means over tokens and heads. <code>diagnosis.write(folder)</code> makes a report.</p></div>"
    )


def _row(side: DiagnosedModel, layer: dict[str, object], names: list[str]) -> str:
    cells = []
    for name in names:
        found = side.metric(layer, name)
        if found is None:
            cells.append(f'<td title="{escape(_reason(layer, name))}">–</td>')
            continue
        mean = float(found["mean"])
        bar = ""
        if name in _BARS:
            below = ' class="exsel-below"' if mean < 0 else ""
            bar = f'<span class="exsel-bar"><i{below} style="width:{min(1.0, abs(mean)):.0%}"></i></span>'
        cells.append(f"<td>{shown(mean)}{bar}</td>")
    return f'<tr><th scope="row">{layer["layer"]}</th>{"".join(cells)}</tr>'


def _reason(layer: dict[str, object], name: str) -> str:
    gaps = layer["gaps"]
    assert isinstance(gaps, dict)
    return str(gaps.get(name, "nothing was counted"))
