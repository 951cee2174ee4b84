"""Passkey retrieval: a five-digit key somewhere in filler text, and at the end a question for it.

The task is Mohtashami and Jaggi's (2023, arXiv:2305.16300) and that of the SSA paper (Zhang et al., 2024,
arXiv:2411.12892). Their sentences are used, without the instruction that opens their prompt, so that the task fits into
128 bytes. A model should be fine-tuned on `passkey_documents` before it is evaluated.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, takewhile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from exsel.data.tokenization import encode
from exsel.errors import ExselError

#: The number of documents if a ``--data`` value gives none.
COUNT = 2000
_NAME = "passkey"
_FILLER = ("The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ")
_UNIT = "".join(_FILLER)
_FACT = "The pass key is {key}. Remember it. {key} is the pass key. "
_QUESTION = "What is the pass key? The pass key is"
# The number of rounds that correct the filler's length until a document has the wanted number of tokens.
_ROUNDS = 8
_BATCH = 1000
# The most digits of a number in a ``--data`` value, and the most tokens in all, held in memory (2000 × 131,072 fit).
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


def is_passkey(spec: str) -> bool:
    """Whether a ``--data`` value names this source; a file or folder of that name takes precedence."""
    return spec.partition(":")[0] == _NAME and not Path(spec).exists()


def passkey_documents(spec: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[str]:
    """Make the documents of a ``--data`` value, with random keys and places.

    The value is ``passkey``, or with options ``passkey:length=256,count=2000,seed=0``: the tokens of a document with
    the one that ends it (by default those of a block, so that each block holds one document), how many documents, and
    the seed of the keys and their places.
    """
    options = {"length": seq_len, "count": COUNT, "seed": 0}
    given: set[str] = set()
    for pair in filter(None, spec.partition(":")[2].split(",")):
        name, _, text = pair.partition("=")
        if name not in options or name in given or not text.isdecimal() or len(text) > _DIGITS:
            names, example = ", ".join(options), f"{_NAME}:length=256,count={COUNT}"
            raise ExselError(
                f"--data {spec}: {pair!r} is not understood; give each of {names} once at most, as in {example}"
            )
        given.add(name)
        options[name] = int(text)
        if options[name] < 1 and name != "seed":
            raise ExselError(f"--data {spec}: {name} must be at least 1")
    length, count = options["length"], options["count"]
    if length > seq_len:
        raise ExselError(
            f"--data {spec}: sequences of {seq_len} tokens cut documents of {length}, and the key from its question: "
            "choose a shorter length or a longer --seq-len"
        )
    if count * length > _MOST_TOKENS:
        raise ExselError(
            f"--data {spec}: {count:,} documents of {length:,} tokens are more than {_MOST_TOKENS:,}, the most "
            "that can be made up: choose a smaller count or length"
        )
    chance = random.Random(options["seed"])
    wanted = [(random_key(chance), chance.random()) for _ in range(count)]
    return [document.text for document in fit_documents(wanted, tokenizer, length)]


def random_key(chance: random.Random) -> str:
    """Five digits of which the first is not 0."""
    return str(chance.randrange(10_000, 100_000))


def write_document(key: str, depth: float, filler: int) -> PasskeyDocument:
    """Hide a key among filler sentences of ``filler`` characters; the first sentence may lack its beginning.

    The key stands before all of them at depth 0, and right before the question at depth 1.
    """
    text = (_UNIT * (filler // len(_UNIT) + 1))[-filler:] if filler else ""
    # The places between sentences, counted from the end of the text, where a sentence ends.
    lengths = cycle(len(sentence) for sentence in reversed(_FILLER))
    places = list(takewhile(lambda place: place <= filler, accumulate(lengths, initial=0)))
    place = filler - places[round((1 - depth) * (len(places) - 1))]
    return PasskeyDocument(text[:place] + _FACT.format(key=key) + text[place:] + _QUESTION, f" {key}")


def fit_documents(
    wanted: Sequence[tuple[str, float]], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[PasskeyDocument]:
    """Hide keys, each at its depth, in filler, so that each document has ``length`` tokens with the end of text.

    With some tokenizers a few documents have one or two tokens fewer, since no filler gives exactly as many.
    """
    for key in ("12345", "67890"):
        ids, _ = encode([(f" {key}", False)], tokenizer)
        if key not in tokenizer.decode(ids.tolist()):
            reason = "it makes something else of them; choose one with all ten digits"
            raise ExselError(f"this tokenizer cannot write the digits of a passkey: {reason}")
    batches = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
    return [document for batch in batches for document in _fit(batch, tokenizer, length - 1)]


def _fit(wanted: Sequence[tuple[str, float]], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[PasskeyDocument]:
    def measure(texts: Iterable[str]) -> list[int]:
        lengths: list[int] = encode([(text, False) for text in texts], tokenizer)[1].tolist()
        return lengths

    best = [write_document(key, depth, 0) for key, depth in wanted]
    counts = measure(document.text for document in best)
    if max(counts) > tokens:
        raise ExselError(
            f"a length of {tokens + 1} tokens is too short for a passkey: the key, the question and the end take "
            f"{max(counts) + 1} with this tokenizer; choose a longer one"
        )
    characters = len(_UNIT) * 20 / measure([_UNIT * 20])[0]  # per token
    fillers = [round((tokens - count) * characters) for count in counts]
    for _ in range(_ROUNDS):
        short = [index for index, count in enumerate(counts) if count < tokens]
        if not short:
            break
        tried = [write_document(*wanted[index], fillers[index]) for index in short]
        found = measure(document.text for document in tried)
        for index, document, tokens_found in zip(short, tried, found, strict=True):
            if counts[index] < tokens_found <= tokens:
                best[index], counts[index] = document, tokens_found
            missing = tokens - tokens_found
            fillers[index] = max(0, fillers[index] + (round(missing * characters) or (missing > 0) - (missing < 0)))
    return best
