"""From what the user names to packed blocks: the sources, the split, the tokenizer and the packing put together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast, get_args

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from exsel.data.documents import Row, rows_to_dataset, to_dataset
from exsel.data.files import find_files, is_local, load_files
from exsel.data.hub import StreamedDocuments, open_hub
from exsel.data.packing import Pack, batches_of, pack_side, pack_stream, spread
from exsel.data.passkey import is_passkey, passkey_documents
from exsel.data.splitting import Side, split_by_content, split_by_name, whole
from exsel.data.standard_library import corpus_name, read_standard_library
from exsel.data.tokenization import Encoder, load_tokenizer, vocabulary_size
from exsel.errors import ExselError

# How much of a stream validates (or is evaluated) where the caller sets no limit.
_STREAM_VALIDATION_TOKENS = 2**20


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What was loaded, for the record; `None` where a stream does not tell before it has been read."""

    name: str
    """The standard library with the interpreter's version, or the values of ``--data``."""
    sha256: str | None
    """Of the documents and of how they are split, in hexadecimal."""
    tokenizer: str
    vocab_size: int
    pack: str
    seq_len: int
    train_documents: int | None
    validation_documents: int | None
    train_bytes: int | None
    """Of the documents as UTF-8."""
    validation_bytes: int | None
    train_tokens: int | None
    """With the token that ends each document, and with those of the last block if it is dropped as incomplete."""
    validation_tokens: int | None
    bytes_per_token: float
    """On the validation documents: bits per byte = loss / ln 2 / bytes_per_token."""


@dataclass(frozen=True, kw_only=True)
class PackedData:
    """Blocks to train and to validate on: rows of ``input_ids`` and, packed with ``isolate``, ``position_ids``."""

    train: Dataset | IterableDataset
    validation: Dataset
    tokenizer: PreTrainedTokenizerBase
    description: DataDescription

    def sha256(self) -> str:
        """Of the description and of the tokens that validate, in hexadecimal.

        It tells whether the text, its split or what the tokenizer makes of it has changed; of a stream's training text
        it knows nothing.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.description), sort_keys=True).encode())
        for block in self.validation:
            digest.update(np.asarray(block["input_ids"], np.int32).tobytes())
        return digest.hexdigest()


def load_data(
    data: str | Sequence[str] = (),
    *,
    tokenizer: str = "bytes",
    seq_len: int,
    pack: str = "concat",
    text_field: str = "text",
    validation_blocks: int | None = None,
) -> PackedData:
    """Load, split, tokenise and pack a corpus.

    Documents are tokenised, each ended by the end-of-text token, joined, and cut into blocks of ``seq_len`` tokens; the
    last block is dropped if incomplete. The split is by file for the standard library, by document for all else (see
    `exsel.data.splitting`), and never depends on chance.

    Args:
        data: nothing for the Python standard library's source; text, ``.jsonl`` and ``.parquet`` files, folders and
            globs of them, and made-up documents with a passkey (``passkey`` or ``passkey:length=256,count=2000``, see
            `exsel.data.passkey`); or one Hugging Face data set as ``name`` or ``name:configuration``, which is
            streamed (something local of that name comes first).
        tokenizer: see `load_tokenizer`.
        seq_len: tokens a block.
        pack: ``"concat"`` joins documents; ``"isolate"`` also adds ``position_ids`` that restart with each document.
        text_field: the field of ``.jsonl``, ``.parquet`` and streamed rows which holds the text.
        validation_blocks: at most this many blocks validate, evenly spread over the validation documents (of a
            stream, the first ones; by default a million tokens).

    Raises:
        ExselError: the data or the tokenizer cannot be used as named, or there is less text than one block.
    """
    packing = _check_packing(seq_len, pack)
    specs = _check_specs(data)
    encoder = Encoder(load_tokenizer(tokenizer))
    if _is_stream(specs):
        train_documents, validation_documents = open_hub(specs[0], text_field)
        train: Dataset | IterableDataset = pack_stream(train_documents, encoder, seq_len=seq_len, pack=packing)
        side = _begin_of_stream(validation_documents, encoder, seq_len, validation_blocks)
        train_side, train_tokens, sha256 = None, None, None
    else:
        train_side, side = (
            split_by_content(_load_rows(specs, text_field, encoder.tokenizer, seq_len))
            if specs
            else split_by_name(read_standard_library())
        )
        train, train_tokens = pack_side(train_side, encoder, seq_len=seq_len, pack=packing)
        _check_length("training", seq_len, train_tokens)
        sha256 = hashlib.sha256(train_side.digest + side.digest).hexdigest()
    validation, validation_tokens = pack_side(side, encoder, seq_len=seq_len, pack=packing)
    _check_length("validation", seq_len, validation_tokens)
    return PackedData(
        train=train,
        validation=spread(validation, validation_blocks),
        tokenizer=encoder.tokenizer,
        description=DataDescription(
            name=_name(specs),
            sha256=sha256,
            tokenizer=tokenizer,
            vocab_size=vocabulary_size(encoder.tokenizer),
            pack=pack,
            seq_len=seq_len,
            train_documents=None if train_side is None else train_side.num_documents,
            validation_documents=side.num_documents,
            train_bytes=None if train_side is None else train_side.num_bytes,
            validation_bytes=side.num_bytes,
            train_tokens=train_tokens,
            validation_tokens=validation_tokens,
            bytes_per_token=side.num_bytes / validation_tokens,
        ),
    )


def load_evaluation_data(
    data: str | Sequence[str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    pack: str = "concat",
    text_field: str = "text",
    max_blocks: int | None = None,
) -> tuple[Dataset, DataDescription]:
    """Load all documents of a corpus to evaluate a model on; of the standard library, the validation side alone.

    Of a streamed data set these are the documents of its validation or test split, or else those of its only split
    which do not train in `load_data`.

    Args:
        tokenizer: the model's own.
        max_blocks: at most this many blocks, evenly spread (of a stream, the first ones; by default a million tokens).
        data, seq_len, pack, text_field: as for `load_data`.

    Returns:
        The blocks and their description, in which the documents count as validation.

    Raises:
        ExselError: as `load_data`.
    """
    packing = _check_packing(seq_len, pack)
    specs = _check_specs(data)
    if tokenizer.eos_token_id is None:
        raise ExselError("the tokenizer has no end-of-text token, which must end each document: set its eos_token")
    encoder = Encoder(tokenizer)
    if _is_stream(specs):
        side = _begin_of_stream(open_hub(specs[0], text_field)[1], encoder, seq_len, max_blocks)
    elif specs:
        side = whole(_load_rows(specs, text_field, tokenizer, seq_len))
    else:
        side = split_by_name(read_standard_library())[1]
    blocks, num_tokens = pack_side(side, encoder, seq_len=seq_len, pack=packing)
    _check_length("evaluation", seq_len, num_tokens)
    return spread(blocks, max_blocks), DataDescription(
        name=_name(specs),
        sha256=None if _is_stream(specs) else side.digest.hex(),
        tokenizer=tokenizer.name_or_path or type(tokenizer).__name__,
        vocab_size=vocabulary_size(tokenizer),
        pack=pack,
        seq_len=seq_len,
        train_documents=None,
        validation_documents=side.num_documents,
        train_bytes=None,
        validation_bytes=side.num_bytes,
        train_tokens=None,
        validation_tokens=num_tokens,
        bytes_per_token=side.num_bytes / num_tokens,
    )


def _check_packing(seq_len: int, pack: str) -> Pack:
    if seq_len < 2:
        raise ExselError(f"a block needs at least 2 tokens, not {seq_len}: choose a longer --seq-len")
    if pack not in get_args(Pack):
        raise ExselError(f"no packing is called {pack!r}: choose one of {', '.join(get_args(Pack))}")
    return cast(Pack, pack)


def _check_specs(data: str | Sequence[str]) -> tuple[str, ...]:
    specs = (data,) if isinstance(data, str) else tuple(data)
    if "" in specs:
        raise ExselError("--data got an empty value: name a file, a folder, a glob or a Hugging Face data set")
    streams = [spec for spec in specs if not (is_passkey(spec) or is_local(spec))]
    if streams and len(specs) > 1:
        raise ExselError(
            f"no such file or folder: {streams[0]} (and a Hugging Face data set cannot be mixed with other data)"
        )
    return specs


def _is_stream(specs: tuple[str, ...]) -> bool:
    return len(specs) == 1 and not (is_passkey(specs[0]) or is_local(specs[0]))


def _name(specs: tuple[str, ...]) -> str:
    return " ".join(specs) or corpus_name()


def _load_rows(specs: tuple[str, ...], text_field: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Dataset:
    """The documents of files, and after them those that are made up."""
    made_up = [spec for spec in specs if is_passkey(spec)]
    files = [spec for spec in specs if spec not in made_up]
    parts = [load_files(find_files(files), text_field)] if files else []
    parts += [to_dataset(passkey_documents(spec, tokenizer, seq_len)) for spec in made_up]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _begin_of_stream(documents: StreamedDocuments, encoder: Encoder, seq_len: int, blocks: int | None) -> Side:
    """The first documents of a stream: as many as give this many blocks, or a million tokens."""
    wanted = max(seq_len, _STREAM_VALIDATION_TOKENS) if blocks is None else blocks * seq_len
    rows: list[Row] = []
    tokens = 0
    for batch in batches_of(documents):
        rows += batch
        tokens += int(encoder(batch)[1].sum())
        if tokens >= wanted:
            break
    if not rows:
        raise ExselError(f"{documents.name} holds no text to validate on: give more data")
    # The last batch may have ended inside a document.
    rows[-1] = (rows[-1][0], True)
    return whole(rows_to_dataset(rows))


def _check_length(side: str, seq_len: int, tokens: int) -> None:
    if tokens < seq_len:
        raise ExselError(
            f"a sequence of {seq_len} tokens is longer than the {side} data, which has {tokens}: "
            f"choose a shorter --seq-len or give more data"
        )
