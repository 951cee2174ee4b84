"""Documents as `datasets` holds them: rows of text, of which a long document takes several.

Rows of bounded length are what lets a text be larger than memory, and a tokenizer work on it in parallel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
from datasets import Dataset, Features, Value

FEATURES = Features({"text": Value("large_string"), "ends": Value("bool")})
"""A row: text that is never empty, and whether its document ends with it or goes on in the next row."""
ROW_CHARACTERS = 2**20

Row = tuple[str, bool]


def rows_of(document: str) -> Iterator[Row]:
    """Cut a document that is not empty into rows, each as long as allowed and cut where a line begins if one does."""
    start = 0
    while len(document) - start > ROW_CHARACTERS:
        newline = document.rfind("\n", start, start + ROW_CHARACTERS)
        end = newline + 1 if newline >= 0 else start + ROW_CHARACTERS
        yield document[start:end], False
        start = end
    yield document[start:], True


def to_dataset(documents: Iterable[str]) -> Dataset:
    """Hold documents in memory; empty ones are left out."""
    return rows_to_dataset(row for document in documents if document for row in rows_of(document))


def rows_to_dataset(rows: Iterable[Row]) -> Dataset:
    """Hold rows in memory."""
    held = list(rows)
    table = {
        "text": pa.array([text for text, _ in held], pa.large_string()),
        "ends": pa.array([ends for _, ends in held], pa.bool_()),
    }
    return Dataset(pa.table(table))
