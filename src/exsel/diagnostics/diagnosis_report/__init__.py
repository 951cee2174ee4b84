"""What one sees of a diagnosis: a page, its figures, the text shaded token by token, and a table for notebooks.

A report is made from the content of ``diagnostics.json``. Writing one needs the extra ``exsel[report]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exsel.diagnostics.diagnosis_report.diagnosed_models import diagnosed_models
from exsel.diagnostics.diagnosis_report.diagnosis_charts import figures_by_section, looks_of_models
from exsel.diagnostics.diagnosis_report.diagnosis_folder import AGAINST, FIGURES, REPORT, RESULTS, TOKENS, clear
from exsel.diagnostics.diagnosis_report.notebook import notebook_html
from exsel.errors import require
from exsel.files import write_json, write_text

__all__ = ["notebook_html", "write"]


def write(record: Mapping[str, Any], folder: Path, against: Mapping[str, Any] | None = None) -> Path:
    """Write the report of one diagnosis or of two; see :meth:`exsel.diagnostics.Diagnosis.write`."""
    for module in ("jinja2", "matplotlib"):
        require(module, "report")
    from exsel.diagnostics.diagnosis_report import diagnosis_page
    from exsel.report.picture import SUFFIXES, write_picture

    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    records = {RESULTS: record} if against is None else {RESULTS: record, AGAINST: against}
    models = diagnosed_models(*records.values())
    sections = figures_by_section(models)
    looks = looks_of_models(models)
    for name, content in records.items():
        write_json(folder / name, content)
    written = [*records, REPORT]
    for figure, suffix in itertools.product(itertools.chain(*sections.values()), SUFFIXES):
        written.append(f"{FIGURES}/{figure.name}{suffix}")
        write_picture(figure, folder / written[-1], looks)
    tokens = diagnosis_page.render_tokens(models)
    if tokens:
        write_text(folder / TOKENS, tokens)
        written.append(TOKENS)
    write_text(folder / REPORT, diagnosis_page.render_diagnosis(models, sections))
    clear(folder, but=written)
    return folder / REPORT
