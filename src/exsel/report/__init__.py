"""What every report is made of, and the page that ``exsel compare`` writes.

For all reports: ``charts`` (figures as data), ``looks`` (their colours and markers) and ``formatting`` (values as
strings) need nothing but Python. ``drawing``, ``picture`` and ``templates`` need the extra ``exsel[report]`` and are
imported only when something is drawn.

For a comparison: ``comparison`` reads ``results.json`` and makes the tables, ``headline`` says the outcome in a
sentence, ``comparison_charts`` are its figures and ``comparison_page`` its page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exsel.errors import require
from exsel.files import write_text
from exsel.report.comparison import interval_sentence, summary_rows, sweep_ends, table_headings
from exsel.report.headline import headline, headline_note

__all__ = [
    "headline",
    "headline_note",
    "interval_sentence",
    "render_report",
    "summary_rows",
    "sweep_ends",
    "table_headings",
    "write_report",
]


def __dir__() -> list[str]:
    return __all__


def render_report(results: Mapping[str, Any]) -> str:
    """Return the report as one HTML document that loads nothing from elsewhere.

    Args:
        results: the content of ``results.json``; what it lacks shows as a dash.

    Raises:
        ImportError: without the extra ``exsel[report]``.
    """
    for module in ("jinja2", "matplotlib"):
        require(module, "report")
    from exsel.report.comparison_page import render_comparison

    return render_comparison(results)


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write ``render_report(results)`` to ``path``, which is replaced in one step or not at all.

    Raises:
        ImportError: without the extra ``exsel[report]``.
        OSError: when the folder cannot be written or the disk is full; an older report stays as it was.
    """
    write_text(path, render_report(results))
