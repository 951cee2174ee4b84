"""Tokenizers, and documents turned into one stream of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from exsel.data.hub_access import first_line, reason_unavailable
from exsel.errors import UserError

# In this order: what the tokenizers of known models call the token that ends a text.
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
_PIECE_CHARACTERS = 2**20


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can end a document.

    Args:
        name: ``"bytes"`` (ByT5's: 256 bytes and pad, eos, unk: 259 tokens, needs no file), a ``tokenizer.json``, a
            folder with a tokenizer, or the name of one on the Hugging Face hub. Code from a hub is never run.

    Raises:
        UserError: there is no such tokenizer, or it has no end-of-text token.
    """
    if name == "bytes":
        return ByT5Tokenizer(extra_ids=0)
    path = Path(name).expanduser()
    tokenizer = _load_file(path) if path.suffix == ".json" else _load_by_name(name, path)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {name!r} has no end-of-text token, which must end each document: "
            f"set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of rows that an embedding needs: one more than the highest token id."""
    # Ids may have holes, and then this is more than the number of tokens.
    return int(max(tokenizer.get_vocab().values())) + 1


@dataclass(frozen=True)
class Encoder:
    """Turns documents into token ids, each document ended by the tokenizer's end-of-text token.

    Bytes are encoded by NumPy: the ids of `ByT5Tokenizer`, some hundred times as fast, except that text which
    spells a special token (``</s>``) stays text. Other tokenizers get long documents in pieces of a million
    characters, cut where a line begins, which bounds memory and lets them work in parallel; a token that would
    span such a cut becomes two.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Encode documents.

        Returns:
            The ids of all documents in a row, int32, and the number of tokens of each (with its end), int64.
        """
        if isinstance(self.tokenizer, ByT5Tokenizer):
            return self._encode_bytes(texts)
        pieces = [list(_pieces(text)) for text in texts]
        encoded: list[list[int]] = self.tokenizer(
            [piece for document in pieces for piece in document],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        end = np.array([self.tokenizer.eos_token_id], np.int32)
        parts: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        remaining = iter(encoded)
        for document in pieces:
            ids = [np.array(next(remaining), np.int32) for _ in document]
            parts += [*ids, end]
            lengths.append(sum(len(piece) for piece in ids) + 1)
        return np.concatenate(parts), np.array(lengths, np.int64)

    def _encode_bytes(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        encoded = [text.encode() for text in texts]
        lengths = np.array([len(document) + 1 for document in encoded], np.int64)
        ids = np.frombuffer(b"\0".join([*encoded, b""]), np.uint8).astype(np.int32)
        ids += self.tokenizer.offset
        ids[np.cumsum(lengths) - 1] = self.tokenizer.eos_token_id
        return ids, lengths


def _load_by_name(name: str, path: Path) -> PreTrainedTokenizerBase:
    reason = None if path.exists() else reason_unavailable(name, "model")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path) if path.exists() else name,
            trust_remote_code=False,
            # One that was loaded before works without the hub.
            local_files_only=reason is not None,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer {name!r} (bytes, a file, a folder or a name on the Hugging Face hub): "
            f"{reason or first_line(error)}"
        ) from error
    return tokenizer


def _load_file(path: Path) -> PreTrainedTokenizerBase:
    if not path.is_file():
        raise UserError(f"no such tokenizer file: {path}")
    if path.name == "tokenizer.json" and path.with_name("tokenizer_config.json").is_file():
        # The folder knows the special tokens, the file alone does not.
        return load_tokenizer(str(path.parent))
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # `tokenizers` raises plain Exception for a file that it cannot read
        raise UserError(f"{path} is not a tokenizer file of the `tokenizers` library: {first_line(error)}") from error
    names = tokenizer.get_vocab()
    tokenizer.eos_token = next((name for name in _END_NAMES if name in names), None)
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        newline = text.rfind("\n", start, start + _PIECE_CHARACTERS)
        end = newline + 1 if newline >= 0 else start + _PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]
