"""Which documents train and which validate: decided by a hash, so that it never depends on order or chance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from exsel.data.documents import rows_to_dataset, to_dataset

VALIDATION_SHARE = 0.05
# Outside these the hash was unlucky (few documents, or one that outweighs the others) and is corrected for.
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.25
_THRESHOLD = int(VALIDATION_SHARE * 2**64)
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a split: documents, and what identifies and measures them."""

    rows: Dataset
    """See `exsel.data.documents`."""
    digest: bytes
    """SHA-256 over the SHA-256 of every document, in order."""
    num_documents: int
    num_bytes: int
    """Of all documents, as UTF-8."""


def key_of(text: str) -> int:
    """The 64-bit key by which a text (a document, or the name of one) falls on one side."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_validation(key: int) -> bool:
    """Whether a document with this key validates: so do 5% of all keys."""
    return key < _THRESHOLD


def whole(rows: Dataset) -> Side:
    """Take every document as one side."""
    return _Survey.of(rows).side(rows)


def split_by_name(texts: dict[str, str]) -> tuple[Side, Side]:
    """Split documents by the hash of their names into (train, validation)."""
    sides: tuple[list[str], list[str]] = ([], [])
    for name, text in texts.items():
        sides[is_validation(key_of(name))].append(text)
    return whole(to_dataset(sides[0])), whole(to_dataset(sides[1]))


def split_by_content(rows: Dataset) -> tuple[Side, Side]:
    """Split documents by the hash of their content into (train, validation), neither of them empty.

    Identical documents fall on the same side. About 5% of the documents validate. Where that is less than 1% or
    more than 25% of the bytes (which takes few documents), documents validate in the order of their hash up to
    5% of the bytes instead, passing over each that would exceed 25%. Where that fails as well (a single document,
    or one that is nearly everything), the end of the longest document validates: as much as 5% of all bytes, at
    most half of it, cut where a line begins. Repetitions of that document are dropped.

    Args:
        rows: of at least one document; see `exsel.data.documents`.
    """
    survey = _Survey.of(rows)
    keys = survey.digests[:, :8].copy().view(">u8").ravel().astype(np.uint64)
    distinct, document_of = np.unique(keys, return_inverse=True)
    # Exact in float64 up to 2^53 bytes.
    shares = np.bincount(document_of, weights=survey.sizes) / survey.sizes.sum()
    chosen = distinct < np.uint64(_THRESHOLD)
    if not _LEAST_SHARE <= shares[chosen].sum() <= _MOST_SHARE:
        chosen = _fill_in_order(shares)
    if shares[chosen].sum() < _LEAST_SHARE:
        return _split_longest(rows, survey)
    validates = chosen[document_of]
    return survey.side(rows, ~validates), survey.side(rows, validates)


def cut_tail(text: str, share: float) -> tuple[str, str]:
    """Cut a text before about its last ``share``, where a line begins if one does within 5% of the text."""
    cut = min(max(1, round(len(text) * (1 - share))), len(text) - 1)
    reach = len(text) // 20 + 1
    newline = text.rfind("\n", max(0, cut - reach), cut)
    if newline < 0:
        newline = text.find("\n", cut, min(cut + reach, len(text) - 1))
    if newline >= 0:
        cut = newline + 1
    return text[:cut], text[cut:]


@dataclass(frozen=True)
class _Survey:
    """Every document of a data set, measured."""

    digests: NDArray[np.uint8]
    """The SHA-256 of each: ``[documents, 32]``."""
    sizes: NDArray[np.int64]
    """In bytes: ``[documents]``."""
    row_counts: NDArray[np.int64]
    """``[documents]``."""

    @classmethod
    def of(cls, rows: Dataset) -> _Survey:
        digests = bytearray()
        sizes: list[int] = []
        row_counts: list[int] = []
        digest, size, count = hashlib.sha256(), 0, 0
        for batch in rows.with_format("arrow").iter(_BATCH):
            for text, ends in zip(batch["text"].to_pylist(), batch["ends"].to_pylist(), strict=True):
                encoded = text.encode()
                digest.update(encoded)
                size += len(encoded)
                count += 1
                if ends:
                    digests += digest.digest()
                    sizes.append(size)
                    row_counts.append(count)
                    digest, size, count = hashlib.sha256(), 0, 0
        return cls(
            np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32),
            np.array(sizes, np.int64),
            np.array(row_counts, np.int64),
        )

    def side(self, rows: Dataset, chosen: NDArray[np.bool_] | None = None) -> Side:
        """A side of all documents or of those chosen by ``[documents]``."""
        if chosen is None:
            chosen = np.ones(len(self.sizes), np.bool_)
        else:
            rows = rows.select(np.flatnonzero(np.repeat(chosen, self.row_counts)))
        return Side(
            rows=rows,
            digest=hashlib.sha256(self.digests[chosen].tobytes()).digest(),
            num_documents=int(chosen.sum()),
            num_bytes=int(self.sizes[chosen].sum()),
        )


def _fill_in_order(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Choose from documents that lie in the order of their hash; see `split_by_content`."""
    chosen = np.zeros(len(shares), np.bool_)
    filled = 0.0
    for index, share in enumerate(shares):
        if filled >= VALIDATION_SHARE:
            break
        if filled + share <= _MOST_SHARE:
            chosen[index] = True
            filled += share
    return chosen


def _split_longest(rows: Dataset, survey: _Survey) -> tuple[Side, Side]:
    longest = int(survey.sizes.argmax())
    others = (survey.digests != survey.digests[longest]).any(axis=1)
    tail_bytes = min(survey.sizes[longest] / 2, VALIDATION_SHARE * survey.sizes.sum())
    first = int(survey.row_counts[:longest].sum())
    # From the last row of the document back to the one in which the tail begins.
    row = last = first + int(survey.row_counts[longest]) - 1
    while tail_bytes > (row_bytes := len(rows[row]["text"].encode())) and row > first:
        tail_bytes -= row_bytes
        row -= 1
    head, tail = cut_tail(rows[row]["text"], tail_bytes / row_bytes)
    kept = [*np.flatnonzero(np.repeat(others, survey.row_counts)), *range(first, row)]
    train = concatenate_datasets([rows.select(kept), rows_to_dataset([(head, True)])])
    validation = concatenate_datasets(
        [rows_to_dataset([(tail, row == last)]), rows.select([*range(row + 1, last + 1)])]
    )
    return whole(train), whole(validation)
