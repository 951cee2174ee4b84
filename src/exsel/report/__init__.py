"""The self-contained page that ``exsel compare`` writes, and the words and tables that it shares with the terminal.

``formatting`` (values as strings), ``summary`` (the table) and ``headline`` (the outcome in a sentence) need
nothing but Python. ``page`` needs the extra ``exsel[report]`` and is imported only when a page is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exsel.errors import require
from exsel.files import write_text
from exsel.report.headline import headline
from exsel.report.summary import HEADINGS, spread_sentence, summary_rows

__all__ = ["HEADINGS", "headline", "render_report", "spread_sentence", "summary_rows", "write_report"]


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
    from exsel.report.page import render

    return render(results)


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write ``render_report(results)`` to ``path``, which is replaced in one step or not at all.

    Raises:
        ImportError: without the extra ``exsel[report]``.
        OSError: when the folder cannot be written or the disk is full; an older report stays as it was.
    """
    write_text(path, render_report(results))
