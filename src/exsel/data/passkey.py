"""Passkey retrieval: a five-digit key somewhere in filler text, and at the end a question for it.

The task is Mohtashami and Jaggi's (2023, arXiv:2305.16300) and that of the SSA paper (Zhang et al., 2024,
arXiv:2411.12892). Their sentences are used, without the instruction that opens their prompt, so that the task fits into
128 bytes; a model is meant to be fine-tuned on `passkey_documents` before it is asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase

from exsel.data.tokenization import Encoder
from exsel.errors import ExselError

NAME = "passkey"
_FILLER = ("The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ")
_UNIT = "".join(_FILLER)
_FACT = "The pass key is {key}. Remember it. {key} is the pass key. "
_QUESTION = "What is the pass key? The pass key is"
# Rounds in which the filler's length is corrected until a document has as many tokens as it should.
_ROUNDS = 8
_BATCH = 1000
# Of a number in a ``--data`` value, and tokens of all its documents, which lie in memory: 2000 of 131,072 have room.
_DIGITS, _MOST_TOKENS = 15, 2**28


@dataclass(frozen=True)
class PasskeyDocument:
    """A prompt and its one right continuation; together they are the document."""

    prompt: str
    answer: str
    """A space and the key."""

    @property
    def text(self) -> str:
        """The document."""
        return self.prompt + self.answer


@dataclass(frozen=True, kw_only=True)
class PasskeyOptions:
    """What ``passkey:length=256,count=2000,seed=0`` says."""

    length: int | None = None
    """Tokens a document, with the one that ends it; by default those of a block."""
    count: int = 2000
    """Documents."""
    seed: int = 0
    """Of the keys and their places."""

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Read a ``--data`` value.

        Raises:
            ExselError: an option that there is not, or a value that is not a whole number or too small.
        """
        values: dict[str, int] = {}
        names = [field.name for field in fields(cls)]
        for pair in filter(None, spec.partition(":")[2].split(",")):
            name, _, text = pair.partition("=")
            if name not in names or not text.isdecimal() or len(text) > _DIGITS or name in values:
                raise ExselError(
                    f"--data {spec}: {pair!r} is not understood; give each of {', '.join(names)} once at most, as in "
                    f"{NAME}:length=256,count=2000"
                )
            values[name] = int(text)
            if values[name] < 1 and name != "seed":
                raise ExselError(f"--data {spec}: {name} must be at least 1")
        return cls(**values)


def is_passkey(spec: str) -> bool:
    """Whether a ``--data`` value names this source; a file or folder of that name comes first."""
    return spec.partition(":")[0] == NAME and not Path(spec).exists()


def passkey_documents(spec: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[str]:
    """Make the documents of a ``--data`` value, with keys and places by chance.

    Args:
        spec: see `PasskeyOptions`.
        tokenizer: by which the length is measured.
        seq_len: of a block, and the length where the value names none: each block then holds one document.

    Raises:
        ExselError: the value or its length cannot be, a document would not fit into a block or all of them into memory,
            or the tokenizer cannot write digits.
    """
    options = PasskeyOptions.parse(spec)
    length = seq_len if options.length is None else options.length
    if length > seq_len:
        raise ExselError(
            f"--data {spec}: sequences of {seq_len} tokens cut documents of {length}, and the key from its question: "
            "choose a shorter length or a longer --seq-len"
        )
    if options.count * length > _MOST_TOKENS:
        raise ExselError(
            f"--data {spec}: {options.count:,} documents of {length:,} tokens are more than {_MOST_TOKENS:,}, the most "
            "that can be made up: choose a smaller count or length"
        )
    chance = random.Random(options.seed)
    wanted = [(random_key(chance), chance.random()) for _ in range(options.count)]
    documents = fit_documents(wanted, tokenizer, length)
    return [document.text for document in documents]


def random_key(chance: random.Random) -> str:
    """Five digits of which the first is not 0."""
    return str(chance.randrange(10_000, 100_000))


def write_document(key: str, depth: float, filler: int) -> PasskeyDocument:
    """Hide a key.

    Args:
        key: five digits.
        depth: where among the filler's sentences it stands: 0 before all of them, 1 right before the question.
        filler: characters of filler, which begins in the midst of a sentence where the characters do not end with one.
    """
    text = (_UNIT * (filler // len(_UNIT) + 1))[-filler:] if filler else ""
    # The places between sentences, from the end of the text, where a sentence ends.
    places, place, index = [filler], filler, len(_FILLER) - 1
    while (place := place - len(_FILLER[index % len(_FILLER)])) >= 0:
        places.append(place)
        index -= 1
    place = places[round((1 - depth) * (len(places) - 1))]
    return PasskeyDocument(text[:place] + _FACT.format(key=key) + text[place:] + _QUESTION, f" {key}")


def fit_documents(
    wanted: Sequence[tuple[str, float]], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[PasskeyDocument]:
    """Hide keys in as much filler as makes documents of one length.

    Args:
        wanted: of each document the key and its depth.
        tokenizer: by which the length is measured.
        length: tokens a document, with the end-of-text token. With some tokenizers a few documents have one or two
            fewer, since no filler gives exactly as many.

    Raises:
        ExselError: the length is too short for the key and the question, or the tokenizer cannot write digits.
    """
    _check_tokenizer(tokenizer)
    encoder = Encoder(tokenizer)
    documents: list[PasskeyDocument] = []
    for start in range(0, len(wanted), _BATCH):
        documents += _fit(wanted[start : start + _BATCH], encoder, length - 1)
    return documents


def _fit(wanted: Sequence[tuple[str, float]], encoder: Encoder, tokens: int) -> list[PasskeyDocument]:
    best = [write_document(key, depth, 0) for key, depth in wanted]
    counts = _count(best, encoder)
    shortest = max(counts)
    if shortest > tokens:
        raise ExselError(
            f"a length of {tokens + 1} tokens is too short for a passkey: the key, the question and the end take "
            f"{shortest + 1} with this tokenizer; choose a longer one"
        )
    characters = len(_UNIT) * 20 / int(encoder([(_UNIT * 20, False)])[1].sum())  # of a token
    fillers = [round((tokens - count) * characters) for count in counts]
    open_ones = [index for index, count in enumerate(counts) if count < tokens]
    for _ in range(_ROUNDS):
        if not open_ones:
            break
        tried = [write_document(*wanted[index], fillers[index]) for index in open_ones]
        for index, document, count in zip(open_ones, tried, _count(tried, encoder), strict=True):
            if counts[index] < count <= tokens:
                best[index], counts[index] = document, count
            missing = tokens - count
            fillers[index] = max(0, fillers[index] + (round(missing * characters) or (missing > 0) - (missing < 0)))
        open_ones = [index for index in open_ones if counts[index] < tokens]
    return best


def _count(documents: Sequence[PasskeyDocument], encoder: Encoder) -> list[int]:
    counts: list[int] = encoder([(document.text, False) for document in documents])[1].tolist()
    return counts


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    for key in ("12345", "67890"):
        ids, _ = Encoder(tokenizer)([(f" {key}", False)])
        if key not in tokenizer.decode(ids.tolist()):
            raise ExselError(
                "this tokenizer cannot write the digits of a passkey: it makes something else of them; "
                "choose one with all ten digits"
            )
