"""Tokenizers, and documents turned into one stream of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from exsel.data.documents import Row
from exsel.errors import ExselError, explained
from exsel.hub_access import reason_unavailable

# The end-of-text token's names in known tokenizers, in the order in which they are looked for.
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can end a document.

    Args:
        name: ``"bytes"`` (ByT5's: 256 bytes and pad, eos, unk: 259 tokens, needs no file), a ``tokenizer.json``, a
            folder with a tokenizer, or the name of one on the Hugging Face hub. Code from a hub is never run.

    Raises:
        ExselError: there is no such tokenizer, or it has no end-of-text token.
    """
    if name == "bytes":
        return ByT5Tokenizer(extra_ids=0)
    path = Path(name).expanduser()
    if path.suffix == ".json" and not path.is_file():
        raise ExselError(f"no such tokenizer file: {path}")
    if path.name == "tokenizer.json" and path.with_name("tokenizer_config.json").is_file():
        path = path.parent  # the folder knows the special tokens, the file alone does not
    tokenizer = _load_file(path) if path.suffix == ".json" else _load_by_name(name, path)
    if tokenizer.eos_token_id is None:
        raise ExselError(
            f"the tokenizer {name!r} has no end-of-text token, which must end each document: "
            f"set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def _load_file(path: Path) -> PreTrainedTokenizerBase:
    with explained(f"{path} is not a tokenizer file of the `tokenizers` library"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    names = tokenizer.get_vocab()
    tokenizer.eos_token = next((name for name in _END_NAMES if name in names), None)
    return tokenizer


def _load_by_name(name: str, path: Path) -> PreTrainedTokenizerBase:
    if name.startswith((".", "/", "~")) and not path.exists():
        raise ExselError(f"no such tokenizer file or folder: {name}")
    reason = None if path.exists() else reason_unavailable(name, "model")
    what = f"cannot load the tokenizer {name!r} (bytes, a file, a folder or a name on the Hugging Face hub)"
    with explained(what if reason is None else f"{what}: {reason}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path) if path.exists() else name,
            trust_remote_code=False,
            local_files_only=reason is not None,  # a cached tokenizer works without the hub
        )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of rows that an embedding needs: one more than the highest token id (ids may have holes)."""
    return int(max(tokenizer.get_vocab().values())) + 1


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Turn rows of documents (see `exsel.data.documents`) into token ids; the end-of-text token ends each document.

    Bytes are encoded by NumPy, about a hundred times as fast as `ByT5Tokenizer` and with the same ids, except that text
    that spells a special token (``</s>``) stays text. With other tokenizers, a token that would span two rows of a long
    document becomes two. Returned are the ids of all rows in one array, and the number of tokens of each row.
    """
    texts = [text for text, _ in rows]
    end: int = tokenizer.eos_token_id
    if isinstance(tokenizer, ByT5Tokenizer):
        offset: int = tokenizer.offset
        parts = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + offset for text in texts]
    else:
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        encoded = tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
        parts = [np.array(ids, np.int32) for ids in encoded]
    parts = [np.append(ids, np.int32(end)) if ends else ids for ids, (_, ends) in zip(parts, rows, strict=True)]
    return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)
