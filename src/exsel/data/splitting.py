"""Decide by a hash which documents train and which validate, independent of order and chance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from exsel.data.documents import rows_of, to_dataset

VALIDATION_SHARE = 0.05
# A share outside this range (few documents, or one that outweighs the others) is corrected.
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.25
_THRESHOLD = int(VALIDATION_SHARE * 2**64)
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents, with the hash and the size of each."""

    rows: Dataset
    """See `exsel.data.documents`."""
    digests: NDArray[np.uint8]
    """The SHA-256 of each document: ``[documents, 32]``."""
    sizes: NDArray[np.int64]
    """Bytes of UTF-8: ``[documents]``."""
    row_counts: NDArray[np.int64]
    """``[documents]``."""

    @classmethod
    def of(cls, rows: Dataset) -> Self:
        """Measure documents."""
        digests: list[bytes] = []
        counts: list[tuple[int, int]] = []
        digest, size, count = hashlib.sha256(), 0, 0
        for batch in rows.iter(_BATCH):
            for text, ends in zip(batch["text"], batch["ends"], strict=True):
                encoded = text.encode()
                digest.update(encoded)
                size, count = size + len(encoded), count + 1
                if ends:
                    digests.append(digest.digest())
                    counts.append((size, count))
                    digest, size, count = hashlib.sha256(), 0, 0
        sizes, row_counts = np.array(counts, np.int64).reshape(-1, 2).T
        numbers = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        return cls(rows=rows, digests=numbers, sizes=sizes, row_counts=row_counts)

    @property
    def digest(self) -> bytes:
        """SHA-256 over the SHA-256 of every document, in order."""
        return hashlib.sha256(self.digests.tobytes()).digest()

    @property
    def num_bytes(self) -> int:
        """Bytes of all documents as UTF-8."""
        return int(self.sizes.sum())

    def split(self, validates: NDArray[np.bool_]) -> tuple[Corpus, Corpus]:
        """Split into (train, validation); the mask ``[documents]`` says which validate."""
        train, validation = (
            Corpus(
                rows=self.rows.select(np.flatnonzero(np.repeat(chosen, self.row_counts))),
                digests=self.digests[chosen],
                sizes=self.sizes[chosen],
                row_counts=self.row_counts[chosen],
            )
            for chosen in (~validates, validates)
        )
        return train, validation


def key_of(text: str) -> int:
    """The 64-bit key that decides on which side a text (a document, or its name) falls."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_validation(key: int) -> bool:
    """Whether a document with this key validates, as 5% of all keys do."""
    return key < _THRESHOLD


def split_by_name(texts: dict[str, str]) -> tuple[Corpus, Corpus]:
    """Split documents by the hash of their names into (train, validation)."""
    validates = np.array([is_validation(key_of(name)) for name in texts])
    return Corpus.of(to_dataset(rows_of(texts.values()))).split(validates)


def split_by_content(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Split documents by the hash of their content into (train, validation), neither of them empty.

    Identical documents fall on the same side. About 5% of the documents validate. Where that is less than 1% or
    more than 25% of the bytes (which takes few documents), documents validate in the order of their hash up to
    5% of the bytes instead, passing over each that would exceed 25%. Where that fails as well (a single document,
    or one that is nearly everything), the end of the longest document validates: as much as 5% of all bytes, at
    most half of it, cut where a line begins. Repetitions of that document are dropped.
    """
    keys = corpus.digests[:, :8].copy().view(">u8").ravel().astype(np.uint64)
    distinct, document_of = np.unique(keys, return_inverse=True)
    shares = np.bincount(document_of, weights=corpus.sizes) / corpus.num_bytes
    chosen = distinct < np.uint64(_THRESHOLD)
    if not _LEAST_SHARE <= shares[chosen].sum() <= _MOST_SHARE:
        chosen[:] = False
        filled = 0.0
        for index, share in enumerate(shares):
            if filled < VALIDATION_SHARE and filled + share <= _MOST_SHARE:
                chosen[index] = True
                filled += share
    if shares[chosen].sum() < _LEAST_SHARE:
        return _split_longest(corpus)
    return corpus.split(chosen[document_of])


def _split_longest(corpus: Corpus) -> tuple[Corpus, Corpus]:
    rows, longest = corpus.rows, int(corpus.sizes.argmax())
    others = (corpus.digests != corpus.digests[longest]).any(axis=1)
    tail_bytes = min(corpus.sizes[longest] / 2, VALIDATION_SHARE * corpus.num_bytes)
    first = int(corpus.row_counts[:longest].sum())
    # Go back from the document's last row to the row in which the tail begins.
    row = last = first + int(corpus.row_counts[longest]) - 1
    while tail_bytes > (row_bytes := len(rows[row]["text"].encode())) and row > first:
        tail_bytes -= row_bytes
        row -= 1
    head, tail = cut_tail(rows[row]["text"], tail_bytes / row_bytes)
    kept = [*np.flatnonzero(np.repeat(others, corpus.row_counts)), *range(first, row)]
    train = [rows.select(kept), to_dataset([(head, True)])]
    validation = [to_dataset([(tail, row == last)]), rows.select([*range(row + 1, last + 1)])]
    return Corpus.of(concatenate_datasets(train)), Corpus.of(concatenate_datasets(validation))


def cut_tail(text: str, share: float) -> tuple[str, str]:
    """Cut a text before about its last ``share``, at a line's start if there is one within 5% of the text."""
    cut = min(max(1, round(len(text) * (1 - share))), len(text) - 1)
    reach = len(text) // 20 + 1
    newline = text.rfind("\n", max(0, cut - reach), cut)
    if newline < 0:
        newline = text.find("\n", cut, min(cut + reach, len(text) - 1))
    if newline >= 0:
        cut = newline + 1
    return text[:cut], text[cut:]
