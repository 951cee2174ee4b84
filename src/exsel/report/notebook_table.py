"""A result in a notebook: sentences and a table that take the notebook's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources


def notebook_table(
    sentence: str,
    paragraphs: Iterable[str],
    headings: Sequence[str],
    rows: Iterable[tuple[str, Iterable[str]]],
    *,
    last: str,
) -> str:
    """HTML without a script, an id or anything from elsewhere.

    Args:
        sentence: the outcome, as text.
        paragraphs: what qualifies it, as text; empty ones are left out.
        headings: of the columns, as text.
        rows: the heading of each, as text, and its cells as HTML: ``<td>`` elements.
        last: HTML below the table.
    """
    style = resources.files("exsel.report").joinpath("notebook.css").read_text(encoding="utf-8")
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(f'<tr><th scope="row">{escape(heading)}</th>{"".join(cells)}</tr>' for heading, cells in rows)
    return (
        f'<div class="exsel-notebook"><style>{style}</style><p><b>{escape(sentence)}</b></p>'
        f"{''.join(f'<p>{escape(text)}</p>' for text in paragraphs if text)}"
        f'<div class="exsel-scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{last}</div>"
    )
