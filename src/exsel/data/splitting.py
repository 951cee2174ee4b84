"""Which documents train and which validate: decided by a hash, so that it never depends on order or chance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

VALIDATION_SHARE = 0.05
# Outside these the hash was unlucky (few documents, or one that outweighs the others) and is corrected for.
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.25
_THRESHOLD = int(VALIDATION_SHARE * 2**64)
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a split: documents, and what identifies and measures them."""

    documents: Dataset
    """Column ``text``."""
    digest: bytes
    """SHA-256 over the SHA-256 of every document, in order."""
    num_bytes: int
    """Of all documents, as UTF-8."""


def to_dataset(texts: Sequence[str]) -> Dataset:
    """Hold documents in memory as a data set with the column ``text``."""
    return Dataset(pa.table({"text": pa.array(texts, pa.large_string())}))


def key_of(text: str) -> int:
    """The 64-bit key by which a text (a document, or the name of one) falls on one side."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_validation(key: int) -> bool:
    """Whether a document with this key validates: so do 5% of all keys."""
    return key < _THRESHOLD


def whole(documents: Dataset) -> Side:
    """Take every document of a data set (column ``text``) as one side."""
    digests, sizes = _survey(documents)
    return _side(documents, digests, sizes)


def split_by_name(texts: dict[str, str]) -> tuple[Side, Side]:
    """Split documents by the hash of their names into (train, validation)."""
    sides: tuple[list[str], list[str]] = ([], [])
    for name, text in texts.items():
        sides[is_validation(key_of(name))].append(text)
    return whole(to_dataset(sides[0])), whole(to_dataset(sides[1]))


def split_by_content(documents: Dataset) -> tuple[Side, Side]:
    """Split documents by the hash of their content into (train, validation), neither of them empty.

    Identical documents fall on the same side. About 5% of the documents validate. Where that is less than 1% or
    more than 25% of the bytes (which takes few documents), documents validate in the order of their hash up to
    5% of the bytes instead, passing over each that would exceed 25%. Where that fails as well (a single document,
    or one that is nearly everything), the end of the longest document validates: as much as 5% of all bytes, at
    most half of it, cut where a line begins. Repetitions of that document are dropped.

    Args:
        documents: column ``text``; at least one document, none of them empty.
    """
    digests, sizes = _survey(documents)
    keys = digests[:, :8].copy().view(">u8").ravel().astype(np.uint64)
    distinct, document_of = np.unique(keys, return_inverse=True)
    # Exact in float64 up to 2^53 bytes.
    shares = np.bincount(document_of, weights=sizes) / sizes.sum()
    chosen = distinct < np.uint64(_THRESHOLD)
    if not _LEAST_SHARE <= shares[chosen].sum() <= _MOST_SHARE:
        chosen = _fill_in_order(shares)
    if shares[chosen].sum() < _LEAST_SHARE:
        return _split_longest(documents, digests, sizes)
    validates = chosen[document_of]
    train, validation = (np.flatnonzero(~validates), np.flatnonzero(validates))
    return (
        _side(documents.select(train), digests[train], sizes[train]),
        _side(documents.select(validation), digests[validation], sizes[validation]),
    )


def cut_tail(text: str, share: float) -> tuple[str, str]:
    """Cut a text before about its last ``share``, where a line begins if one does within another ``share``."""
    cut = min(max(1, round(len(text) * (1 - share))), len(text) - 1)
    newline = text.rfind("\n", max(0, cut - max(1, round(len(text) * share))), cut)
    if newline >= 0:
        cut = newline + 1
    return text[:cut], text[cut:]


def _survey(documents: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The SHA-256 ``[documents, 32]`` and the size in bytes ``[documents]`` of each document."""
    digests = bytearray()
    sizes: list[int] = []
    for batch in documents.with_format("arrow").iter(_BATCH):
        for text in batch["text"].to_pylist():
            encoded = text.encode()
            digests += hashlib.sha256(encoded).digest()
            sizes.append(len(encoded))
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32), np.array(sizes, np.int64)


def _side(documents: Dataset, digests: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Side:
    digest = hashlib.sha256(digests.tobytes()).digest()
    return Side(documents=documents, digest=digest, num_bytes=int(sizes.sum()))


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


def _split_longest(documents: Dataset, digests: NDArray[np.uint8], sizes: NDArray[np.int64]) -> tuple[Side, Side]:
    longest = int(sizes.argmax())
    others = np.flatnonzero((digests != digests[longest]).any(axis=1))
    share = min(0.5, VALIDATION_SHARE * float(sizes.sum()) / float(sizes[longest]))
    head, tail = cut_tail(documents[longest]["text"], share)
    train = to_dataset([head])
    if len(others):
        train = concatenate_datasets([documents.select(others), train])
    return whole(train), whole(to_dataset([tail]))
