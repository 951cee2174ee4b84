"""Documents packed into blocks of one length, and blocks collated into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from torch import Tensor

from exsel.data.documents import Row, rows_of
from exsel.data.progress import no_progress_bars
from exsel.data.splitting import Side
from exsel.data.tokenization import Encoder

Pack = Literal["concat", "isolate"]
IGNORED_LABEL = -100
_BATCH_BYTES = 16 * 2**20
_MOST_ROWS = 1000
_STREAM_ROWS = 64
# Part of the name under which `datasets` caches large results: raise it when the blocks of the same text change.
_FORMAT = 1


class Packer:
    """Joins the tokens of documents, batch after batch, and cuts them into blocks.

    It keeps the tokens that do not fill a block for the next batch, so each instance serves one pass.
    """

    def __init__(self, encoder: Encoder, seq_len: int, pack: Pack) -> None:
        self.encoder = encoder
        self.seq_len = seq_len
        self.pack = pack
        self._tokens = np.zeros(0, np.int32)
        self._starts = np.zeros(0, np.bool_)
        self._next_starts = np.True_

    def __call__(self, rows: Sequence[Row], *, last: bool) -> dict[str, NDArray[np.int32]]:
        """Add rows of documents.

        Returns:
            The tokens that fill blocks by now, in a row (with ``last`` all of them, so that the last block may be
            shorter): ``input_ids``, and for ``isolate`` also ``position_ids``, which count from 0 at the start of each
            document and of each block.
        """
        tokens, lengths = self.encoder(rows)
        # A document starts where one has ended, which may be with the token to come.
        starts = np.zeros(len(tokens) + 1, np.bool_)
        starts[np.cumsum(lengths)[[ends for _, ends in rows]]] = True
        starts[0] |= self._next_starts
        self._next_starts = starts[-1]
        tokens = np.concatenate([self._tokens, tokens])
        starts = np.concatenate([self._starts, starts[:-1]])
        ready = len(tokens) if last else len(tokens) // self.seq_len * self.seq_len
        self._tokens, self._starts = tokens[ready:], starts[ready:]
        columns = {"input_ids": tokens[:ready]}
        if self.pack == "isolate":
            starts = starts[:ready]
            starts[:: self.seq_len] = True
            index = np.arange(ready, dtype=np.int64)
            start = np.maximum.accumulate(np.where(starts, index, 0))
            columns["position_ids"] = (index - start).astype(np.int32)
        return columns


def pack_side(side: Side, encoder: Encoder, *, seq_len: int, pack: Pack) -> tuple[Dataset, int]:
    """Tokenise and pack the documents of one side.

    Returns:
        The blocks (``input_ids`` and for ``isolate`` ``position_ids``, int32 of ``seq_len`` tokens; none if the side is
        shorter than one) and the number of tokens of the side, with those that fill no block. Blocks of memory-mapped
        documents are memory-mapped and cached beside them.
    """
    rows = side.rows
    packer = Packer(encoder, seq_len, pack)

    def pack_batch(batch: pa.Table, indices: list[int]) -> pa.Table:
        read = list(zip(batch["text"].to_pylist(), batch["ends"].to_pylist(), strict=True))
        columns = packer(read, last=indices[-1] == len(rows) - 1)
        return pa.table({name: _cut(tokens, seq_len) for name, tokens in columns.items()})

    # The functions that make the blocks carry state, so their result is named by what goes into it.
    name = f"exsel {_FORMAT} {side.digest.hex()} {Hasher.hash(encoder.tokenizer)} {seq_len} {pack}"
    with no_progress_bars():
        blocks = rows.with_format("arrow").map(
            pack_batch,
            with_indices=True,
            batched=True,
            batch_size=max(1, min(_MOST_ROWS, _BATCH_BYTES * len(rows) // max(1, side.num_bytes))),
            remove_columns=rows.column_names,
            features=_features(pack),
            new_fingerprint=hashlib.sha256(name.encode()).hexdigest()[:32],
        )
    blocks = blocks.with_format("numpy", dtype=np.int32)
    rest = len(blocks[-1]["input_ids"])
    num_tokens = (len(blocks) - 1) * seq_len + rest
    if rest < seq_len:
        blocks = blocks.select(range(len(blocks) - 1))
    return blocks, num_tokens


def pack_stream(documents: Iterable[str], encoder: Encoder, *, seq_len: int, pack: Pack) -> IterableDataset:
    """Tokenise and pack documents as they come; every iteration begins the documents anew."""
    return IterableDataset.from_generator(
        _stream_blocks,
        features=_features(pack),
        # In a tuple, since `datasets` takes a list here for shards that may be read apart.
        gen_kwargs={"source": (documents, encoder, seq_len, pack)},
    ).with_format("numpy")


def batches_of(documents: Iterable[str]) -> Iterator[list[Row]]:
    """Group the rows of a stream of documents for the tokenizer."""
    rows = (row for document in documents for row in rows_of(document))
    while batch := list(islice(rows, _STREAM_ROWS)):
        yield batch


def spread(blocks: Dataset, most: int | None) -> Dataset:
    """At most ``most`` blocks, evenly spread over all of them."""
    if most is None or most >= len(blocks):
        return blocks
    return blocks.select(np.arange(most) * len(blocks) // most)


def token_counts(blocks: Dataset | IterableDataset, vocab_size: int, max_blocks: int | None = None) -> Tensor:
    """Count how often each token occurs.

    Args:
        blocks: with the column ``input_ids``.
        vocab_size: the length of the result; every id is less.
        max_blocks: count in this many blocks: spread evenly over a data set, the first of a stream. All by default
            (a stream is then read to its end).

    Returns:
        int64 of ``[vocab_size]``.
    """
    counts = np.zeros(vocab_size, np.int64)
    if isinstance(blocks, IterableDataset):
        for block in islice(blocks, max_blocks):
            counts += np.bincount(np.asarray(block["input_ids"]), minlength=vocab_size)
    else:
        chosen = spread(blocks, max_blocks).select_columns("input_ids").with_format("arrow")
        for batch in chosen.iter(_MOST_ROWS):
            for chunk in batch["input_ids"].chunks:
                counts += np.bincount(chunk.flatten().to_numpy(), minlength=vocab_size)
    return torch.from_numpy(counts)


def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Make a batch of blocks.

    Returns:
        int64 tensors of ``[batch, seq_len]``: ``input_ids``, ``labels`` (the same ids: transformers' models shift
        them) and, where the blocks have them, ``position_ids``. The label of a block's first token is −100, since
        nothing predicts it and a count of labels is then one of predictions; with positions also that of each
        document's first token, so that no token is predicted from another document.
    """
    batch = {"input_ids": _stack(features, "input_ids")}
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, 0] = IGNORED_LABEL
    if "position_ids" in features[0]:
        batch["position_ids"] = _stack(features, "position_ids")
        batch["labels"][batch["position_ids"] == 0] = IGNORED_LABEL
    return batch


def _stack(features: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(feature[name], np.int64) for feature in features]))


def _features(pack: Pack) -> Features:
    names = ["input_ids", "position_ids"] if pack == "isolate" else ["input_ids"]
    return Features({name: List(Value("int32")) for name in names})


def _cut(tokens: NDArray[np.int32], seq_len: int) -> pa.ListArray:
    """Cut tokens into blocks; the last may be shorter."""
    offsets = np.append(np.arange(0, len(tokens), seq_len), len(tokens)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens))


def _stream_blocks(source: tuple[Iterable[str], Encoder, int, Pack]) -> Iterator[dict[str, NDArray[np.int32]]]:
    documents, encoder, seq_len, pack = source
    packer = Packer(encoder, seq_len, pack)
    for batch in batches_of(documents):
        columns = packer(batch, last=False)
        for start in range(0, len(columns["input_ids"]), seq_len):
            yield {name: tokens[start : start + seq_len] for name, tokens in columns.items()}
