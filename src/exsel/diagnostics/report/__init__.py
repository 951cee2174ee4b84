"""What one sees of a diagnosis: a page, its figures, the text shaded token by token, and a table for notebooks.

``diagnosis_folder``, ``diagnosed_models``, ``sentences``, ``token_text`` and ``notebook`` need nothing
but Python. ``drawing``, ``figures``,
``heatmaps`` and ``diagnosis_page`` need the extra ``exsel[report]`` and are imported only when a page is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exsel.diagnostics.report import diagnosis_folder
from exsel.diagnostics.report.notebook import notebook_html
from exsel.diagnostics.report.sentences import headline

if TYPE_CHECKING:
    from exsel.diagnostics.diagnosis import Diagnosis

__all__ = ["headline", "notebook_html", "write"]


def __dir__() -> list[str]:
    return __all__


def write(diagnosis: Diagnosis, folder: Path, against: Diagnosis | None = None) -> Path:
    """Write the report of a diagnosis, or of two side by side.

    ``report.html`` and ``tokens.html`` (the text shaded token by token) are one file each and load nothing;
    ``diagnostics.json`` holds the numbers (``diagnostics-against.json`` those of the other model), and ``figures`` each
    figure as SVG, PNG and PDF.

    Args:
        diagnosis: of the model that this is about.
        folder: made where it does not exist; what an earlier report left there is replaced.
        against: of another model on the same text.

    Returns:
        The report's path.

    Raises:
        ImportError: without the extra ``exsel[report]``.
        OSError: the folder cannot be written.
    """
    from exsel.errors import require
    from exsel.files import write_json, write_text

    for module in ("jinja2", "matplotlib"):
        require(module, "report")
    from exsel.diagnostics.report import diagnosis_page
    from exsel.diagnostics.report.diagnosed_models import diagnosed_models
    from exsel.diagnostics.report.figures import drawings

    figures = folder / diagnosis_folder.FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    sides = diagnosed_models(diagnosis, against)
    drawn = drawings(sides)
    written = [diagnosis_folder.RESULTS, diagnosis_folder.REPORT]
    write_json(folder / diagnosis_folder.RESULTS, diagnosis.to_dict())
    if against is not None:
        write_json(folder / diagnosis_folder.AGAINST, against.to_dict())
        written.append(diagnosis_folder.AGAINST)
    for drawing in drawn:
        written += [f"{diagnosis_folder.FIGURES}/{name}" for name in drawing.write(figures)]
    if diagnosis_page.has_tokens(sides):
        write_text(folder / diagnosis_folder.TOKENS, diagnosis_page.render_tokens(sides))
        written.append(diagnosis_folder.TOKENS)
    write_text(folder / diagnosis_folder.REPORT, diagnosis_page.render(sides, drawn))
    diagnosis_folder.clear(folder, but=written)
    return folder / diagnosis_folder.REPORT
