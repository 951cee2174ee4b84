"""Documents as `datasets` holds them: rows of text. A long document takes several rows.

Rows of bounded length let a text be larger than memory, and a tokenizer work on it in parallel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Value

FEATURES = Features({"text": Value("large_string"), "ends": Value("bool")})
"""A row: text that is never empty, and whether its document ends with it or goes on in the next row."""
ROW_CHARACTERS = 2**20

Row = tuple[str, bool]


def rows_of(documents: Iterable[str | None]) -> Iterator[Row]:
    """Cut documents into rows of bounded length, at a line's start if possible; leave out empty documents."""
    for document in documents:
        text = document or ""
        start = 0
        while len(text) - start > ROW_CHARACTERS:
            newline = text.rfind("\n", start, start + ROW_CHARACTERS)
            end = newline + 1 if newline >= 0 else start + ROW_CHARACTERS
            yield text[start:end], False
            start = end
        if text:
            yield text[start:], True


def to_dataset(rows: Iterable[Row]) -> Dataset:
    """Hold rows in memory."""
    held = list(rows)
    texts = pa.array([text for text, _ in held], pa.large_string())
    return Dataset(pa.table({"text": texts, "ends": pa.array([ends for _, ends in held], pa.bool_())}))


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets` in the block."""
    were_disabled = datasets.are_progress_bars_disabled()
    if not were_disabled:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()
