"""Documents packed into blocks of one length, and blocks collated into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from exsel.data.documents import Row, no_progress_bars, rows_of
from exsel.data.splitting import Corpus
from exsel.data.tokenization import encode

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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seq_len: int, pack: Pack) -> None:
        self.tokenizer, self.seq_len, self.pack = tokenizer, seq_len, pack
        self._tokens = np.zeros(0, np.int32)
        self._starts = np.zeros(0, np.bool_)
        self._next_starts = np.True_

    def __call__(self, rows: Sequence[Row], *, last: bool) -> dict[str, list[NDArray[np.int32]]]:
        """Add rows of documents, and return the blocks that are full by now, with ``last`` also the rest.

        They have ``input_ids``, and for ``isolate`` also ``position_ids``, which count from 0 at the start of each
        document and of each block.
        """
        tokens, lengths = encode(rows, self.tokenizer)
        # A document starts after the end of another. The last entry is for the first token of the next call.
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
            starts[:: self.seq_len] = True
            index = np.arange(ready, dtype=np.int32)
            columns["position_ids"] = index - np.maximum.accumulate(np.where(starts[:ready], index, 0))
        cuts = range(0, ready, self.seq_len)
        return {name: [ids[cut : cut + self.seq_len] for cut in cuts] for name, ids in columns.items()}


def pack_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, seq_len: int, pack: Pack) -> tuple[Dataset, int]:
    """Tokenise and pack documents: the blocks, and the number of tokens, with those that fill no block.

    The blocks are ``input_ids`` and for ``isolate`` ``position_ids``, int32 of ``seq_len`` tokens; none if there is
    less text than one. Blocks of memory-mapped documents are memory-mapped and cached beside them.
    """
    rows = corpus.rows
    packer = Packer(tokenizer, seq_len, pack)

    def pack_batch(texts: list[str], ends: list[bool], indices: list[int]) -> dict[str, list[NDArray[np.int32]]]:
        return packer(list(zip(texts, ends, strict=True)), last=indices[-1] == len(rows) - 1)

    # The packer carries state, so `datasets` cannot hash it. The cached result is named by the packer's inputs.
    name = f"exsel {_FORMAT} {corpus.digest.hex()} {Hasher.hash(tokenizer)} {seq_len} {pack}"
    with no_progress_bars():
        blocks = rows.map(
            pack_batch,
            input_columns=["text", "ends"],
            with_indices=True,
            batched=True,
            batch_size=max(1, min(_MOST_ROWS, _BATCH_BYTES * len(rows) // max(1, corpus.num_bytes))),
            remove_columns=rows.column_names,
            features=_features(pack),
            new_fingerprint=hashlib.sha256(name.encode()).hexdigest()[:32],
        ).with_format("numpy", dtype=np.int32)
    full, rest = len(blocks) - 1, len(blocks[-1]["input_ids"])
    return blocks if rest == seq_len else blocks.select(range(full)), full * seq_len + rest


def pack_stream(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, seq_len: int, pack: Pack
) -> IterableDataset:
    """Tokenise and pack documents as they come; every iteration starts with the first document."""
    # A tuple, since `datasets` takes a list here for shards that may be read separately.
    source = {"source": (documents, tokenizer, seq_len, pack)}
    return IterableDataset.from_generator(_stream_blocks, features=_features(pack), gen_kwargs=source).with_format(
        "numpy"
    )


def _stream_blocks(
    source: tuple[Iterable[str], PreTrainedTokenizerBase, int, Pack],
) -> Iterator[dict[str, NDArray[np.int32]]]:
    documents, *settings = source
    packer = Packer(*settings)
    for batch in batches_of(documents):
        columns = packer(batch, last=False)
        for block in zip(*columns.values(), strict=True):
            yield dict(zip(columns, block, strict=True))


def batches_of(documents: Iterable[str]) -> Iterator[list[Row]]:
    """Group the rows of a stream of documents for the tokenizer."""
    rows = rows_of(documents)
    while batch := list(islice(rows, _STREAM_ROWS)):
        yield batch


def _features(pack: Pack) -> Features:
    names = ["input_ids", "position_ids"] if pack == "isolate" else ["input_ids"]
    return Features({name: List(Value("int32")) for name in names})


def evenly_spread(blocks: Dataset, most: int | None) -> Dataset:
    """At most ``most`` blocks, evenly spread over all of them."""
    if most is None or most >= len(blocks):
        return blocks
    return blocks.select(np.arange(most) * len(blocks) // most)


def joined_blocks(blocks: Dataset, factor: int, most: int) -> list[dict[str, NDArray[np.int32]]]:
    """At most ``most`` longer blocks, evenly spread, each of ``factor`` blocks that follow one another.

    Without ``position_ids`` these are the blocks that packing the same text at the longer length would give.
    """
    count = len(blocks) // factor
    starts = [factor * (index * count // min(most, count)) for index in range(min(most, count))]
    return [
        {"input_ids": np.concatenate([blocks[start + place]["input_ids"] for place in range(factor)])}
        for start in starts
    ]


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
    is_stream = isinstance(blocks, IterableDataset)
    chosen = islice(blocks, max_blocks) if is_stream else evenly_spread(blocks, max_blocks).iter(_MOST_ROWS)
    counts = np.zeros(vocab_size, np.int64)
    for batch in chosen:
        counts += np.bincount(np.asarray(batch["input_ids"]).ravel(), minlength=vocab_size)
    return torch.from_numpy(counts)


def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Make a batch of blocks.

    Returns:
        int64 tensors of ``[batch, seq_len]``: ``input_ids``, ``labels`` (the same ids: transformers' models shift
        them) and, if the blocks have them, ``position_ids``. The label of a block's first token is −100: nothing
        predicts it, so the other labels count the predictions. With positions, the label of each document's first
        token is −100 too, so that no token is predicted from another document.
    """
    names = [name for name in ("input_ids", "position_ids") if name in features[0]]
    batch = {name: torch.from_numpy(np.stack([np.asarray(row[name], np.int64) for row in features])) for name in names}
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, 0] = IGNORED_LABEL
    if "position_ids" in batch:
        batch["labels"][batch["position_ids"] == 0] = IGNORED_LABEL
    return batch
