"""Turn what the user names into packed blocks: sources, split, tokenizer and packing put together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast, get_args

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from exsel.data.documents import Row, rows_of, to_dataset
from exsel.data.hub import StreamedDocuments, open_hub
from exsel.data.packing import Pack, batches_of, evenly_spread, joined_blocks, pack_corpus, pack_stream
from exsel.data.passkey import is_passkey, passkey_documents
from exsel.data.splitting import Corpus, split_by_content, split_by_name
from exsel.data.standard_library import corpus_name, read_standard_library
from exsel.data.text_files import find_files, is_local, load_files
from exsel.data.tokenization import encode, load_tokenizer, vocabulary_size
from exsel.errors import ExselError

# How many times as long as the other blocks are those that are longer than what is trained on, and how many at most.
_LONGER, _LONGER_BLOCKS = 4, 32
# The tokens of a stream that validate (or are evaluated) if the caller sets no limit.
_STREAM_VALIDATION_TOKENS = 2**20


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What was loaded, for a run's results. A value is `None` if only reading a whole stream would tell it."""

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


#: Blocks, and where they are from.
EvaluationSet = tuple[Dataset, DataDescription]


@dataclass(frozen=True, kw_only=True)
class PackedData:
    """Blocks to train and to validate on: rows of ``input_ids`` and, packed with ``isolate``, ``position_ids``."""

    train: Dataset | IterableDataset
    validation: Dataset
    tokenizer: PreTrainedTokenizerBase
    description: DataDescription
    longer: Sequence[Mapping[str, NDArray[np.int32]]] = ()
    """Validation text in blocks four times as long; none if there is too little, or documents are kept apart."""
    evaluation_sets: Mapping[str, EvaluationSet] = field(default_factory=dict)
    """By name, what a trained model is evaluated on beside the validation blocks."""

    def cut(self, blocks: int) -> PackedData:
        """The same with at most this many blocks to validate, and of each evaluation set, evenly spread."""
        sets = {name: (evenly_spread(own, blocks), said) for name, (own, said) in self.evaluation_sets.items()}
        return replace(self, validation=evenly_spread(self.validation, blocks), evaluation_sets=sets)

    def sha256(self) -> str:
        """SHA-256 of the description and of the validation tokens, in hexadecimal.

        It changes with the text, its split and what the tokenizer makes of it. The training text of a stream is not
        part of it.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.description), sort_keys=True).encode())
        for name, (_, description) in self.evaluation_sets.items():
            digest.update(f"{name} {description.sha256}".encode())
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
    part: tuple[int, int] = (0, 1),
    texts: Sequence[str] = (),
) -> PackedData:
    """Load, split, tokenise and pack a corpus.

    Documents are tokenised, each ended by the end-of-text token, joined, and cut into blocks of ``seq_len`` tokens; the
    last block is dropped if incomplete. The split is by file for the standard library, by document for all else (see
    `exsel.data.splitting`), and is deterministic.

    Args:
        data: nothing for the Python standard library's source; text, ``.jsonl`` and ``.parquet`` files, folders and
            globs of them, and made-up documents with a passkey (``passkey`` or ``passkey:length=256,count=2000``, see
            `exsel.data.passkey`); or one Hugging Face data set as ``name`` or ``name:configuration``, which is
            streamed (a local file or folder of that name takes precedence).
        tokenizer: see `load_tokenizer`.
        seq_len: tokens a block.
        pack: ``"concat"`` joins documents; ``"isolate"`` also adds ``position_ids`` that restart with each document.
        text_field: the field of ``.jsonl``, ``.parquet`` and streamed rows which holds the text.
        validation_blocks: at most this many blocks validate, evenly spread over the validation documents (of a
            stream, the first ones; by default a million tokens).
        part: of a stream, load the training documents of one process: its number from 0, and how many there are.
            All else is loaded whole.
        texts: documents in memory, in place of ``data``.

    Raises:
        ExselError: the data or the tokenizer cannot be used as named, or there is less text than one block.
    """
    return _load(data, tokenizer, seq_len, pack, text_field, validation_blocks, part, trains=True, texts=texts)


def load_evaluation_data(
    data: str | Sequence[str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    pack: str = "concat",
    text_field: str = "text",
    max_blocks: int | None = None,
) -> tuple[Dataset, DataDescription]:
    """Load all documents of a corpus to evaluate a model on; of the standard library, only the validation part.

    Of a streamed data set, load its validation or test split, or else those documents of its only split that
    `load_data` does not train on.

    Args:
        data, seq_len, pack, text_field: as for `load_data`, with the same errors.
        tokenizer: the model's own.
        max_blocks: at most this many blocks, evenly spread (of a stream, the first ones; by default a million tokens).

    Returns:
        The blocks and their description, in which the documents count as validation.
    """
    loaded = _load(data, tokenizer, seq_len, pack, text_field, max_blocks, trains=False)
    return loaded.validation, loaded.description


def _load(
    data: str | Sequence[str],
    tokenizer: str | PreTrainedTokenizerBase,
    seq_len: int,
    pack: str,
    text_field: str,
    max_blocks: int | None,
    part: tuple[int, int] = (0, 1),
    *,
    trains: bool,
    texts: Sequence[str] = (),
) -> PackedData:
    """Load a corpus. Without ``trains``, pack only its validation part, which for files is all documents."""
    if seq_len < 2:
        raise ExselError(f"a block needs at least 2 tokens, not {seq_len}: choose a longer --seq-len")
    if pack not in get_args(Pack):
        raise ExselError(f"no packing is called {pack!r}: choose one of {', '.join(get_args(Pack))}")
    packing = cast(Pack, pack)
    specs = (data,) if isinstance(data, str) else tuple(data)
    if "" in specs:
        raise ExselError("--data got an empty value: name a file, a folder, a glob or a Hugging Face data set")
    streams = [spec for spec in specs if not (is_passkey(spec) or is_local(spec))]
    if streams and len(specs) > 1:
        raise ExselError(
            f"no such file or folder: {streams[0]} (and a Hugging Face data set cannot be mixed with other data)"
        )
    if isinstance(tokenizer, str):
        name, tokenizer = tokenizer, load_tokenizer(tokenizer)
    else:
        name = tokenizer.name_or_path or type(tokenizer).__name__
    if tokenizer.eos_token_id is None:
        raise ExselError("the tokenizer has no end-of-text token, which must end each document: set its eos_token")

    train: Dataset | IterableDataset | None = None
    train_corpus: Corpus | None = None
    train_tokens = sha256 = None
    if streams:
        train_documents, documents = open_hub(specs[0], text_field)
        train = pack_stream(train_documents.part(*part), tokenizer, seq_len=seq_len, pack=packing)
        corpus = _beginning(documents, tokenizer, seq_len, max_blocks)
    else:
        if texts:
            train_corpus, corpus = split_by_content(Corpus.of(to_dataset(rows_of(texts))))
        else:
            train_corpus, corpus = _read(specs, text_field, tokenizer, seq_len, trains=trains)
        sha256 = corpus.digest.hex()
        if train_corpus is not None:
            sha256 = hashlib.sha256(train_corpus.digest + corpus.digest).hexdigest()
            train, train_tokens = pack_corpus(train_corpus, tokenizer, seq_len=seq_len, pack=packing)
            _check_length("training", seq_len, train_tokens)
    validation, tokens = pack_corpus(corpus, tokenizer, seq_len=seq_len, pack=packing)
    _check_length("validation" if trains else "evaluation", seq_len, tokens)
    longer = []
    if trains and pack == "concat":
        longer = joined_blocks(validation, _LONGER, min(_LONGER_BLOCKS, max(1, (max_blocks or len(validation)) // 2)))
    return PackedData(
        train=train,
        validation=evenly_spread(validation, max_blocks),
        longer=longer,
        tokenizer=tokenizer,
        description=DataDescription(
            name=" ".join(specs) or (f"{len(texts):,} texts" if texts else corpus_name()),
            sha256=sha256,
            tokenizer=name,
            vocab_size=vocabulary_size(tokenizer),
            pack=pack,
            seq_len=seq_len,
            train_documents=None if train_corpus is None else len(train_corpus.sizes),
            validation_documents=len(corpus.sizes),
            train_bytes=None if train_corpus is None else train_corpus.num_bytes,
            validation_bytes=corpus.num_bytes,
            train_tokens=train_tokens,
            validation_tokens=tokens,
            bytes_per_token=corpus.num_bytes / tokens,
        ),
    )


def _read(
    specs: Sequence[str], text_field: str, tokenizer: PreTrainedTokenizerBase, seq_len: int, *, trains: bool
) -> tuple[Corpus | None, Corpus]:
    """The documents that train (``None`` without ``trains``), and those that validate."""
    if not specs:
        train, validation = split_by_name(read_standard_library())
        return (train if trains else None), validation
    made_up = [spec for spec in specs if is_passkey(spec)]
    files = [spec for spec in specs if spec not in made_up]
    parts = [load_files(find_files(files), text_field)] if files else []
    parts += [to_dataset(rows_of(passkey_documents(spec, tokenizer, seq_len))) for spec in made_up]
    corpus = Corpus.of(parts[0] if len(parts) == 1 else concatenate_datasets(parts))
    return split_by_content(corpus) if trains else (None, corpus)


def _beginning(
    documents: StreamedDocuments, tokenizer: PreTrainedTokenizerBase, seq_len: int, blocks: int | None
) -> Corpus:
    """The first documents of a stream: as many as give this many blocks, or a million tokens."""
    wanted = max(seq_len, _STREAM_VALIDATION_TOKENS) if blocks is None else blocks * seq_len
    rows: list[Row] = []
    tokens = 0
    for batch in batches_of(documents):
        rows += batch
        tokens += len(encode(batch, tokenizer)[0])
        if tokens >= wanted:
            break
    if not rows:
        raise ExselError(f"{documents.name} holds no text to validate on: give more data")
    rows[-1] = (rows[-1][0], True)  # the last batch may have ended inside a document
    return Corpus.of(to_dataset(rows))


def _check_length(side: str, seq_len: int, tokens: int) -> None:
    if tokens < seq_len:
        raise ExselError(
            f"a sequence of {seq_len} tokens is longer than the {side} data, which has {tokens}: "
            f"choose a shorter --seq-len or give more data"
        )
