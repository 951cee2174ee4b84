"""Passkey retrieval: how often a model finds a key, by the length of the text and by the place of the key in it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from exsel.data.passkey import fit_documents, random_key
from exsel.data.tokenization import encode
from exsel.errors import ExselError
from exsel.lengths import check_positions

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class PasskeyResult:
    """How many keys were found at each length and depth."""

    lengths: tuple[int, ...]
    """In tokens."""
    depths: tuple[float, ...]
    """From 0, before all filler, to 1, right before the question."""
    samples: int
    """Keys asked for at each length and depth."""
    seed: int
    correct: tuple[tuple[int, ...], ...]
    """Keys found: a row for each length, in it a number for each depth."""

    @property
    def accuracy(self) -> tuple[tuple[float, ...], ...]:
        """The share of keys found: a row for each length, in it a number for each depth."""
        return tuple(tuple(found / self.samples for found in row) for row in self.correct)

    @property
    def by_length(self) -> tuple[float, ...]:
        """The share of keys found at each length, over all depths."""
        return tuple(sum(row) / (self.samples * len(row)) for row in self.correct)

    @property
    def by_depth(self) -> tuple[float, ...]:
        """The share of keys found at each depth, over all lengths."""
        return tuple(sum(column) / (self.samples * len(column)) for column in zip(*self.correct, strict=True))

    @property
    def mean(self) -> float:
        """The share of all keys found."""
        return sum(self.by_length) / len(self.lengths)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the shares."""
        return asdict(self) | {name: getattr(self, name) for name in ("accuracy", "by_length", "by_depth", "mean")}


class _Question(NamedTuple):
    """A document as tokens; ``cell`` is the place of its length and of its depth in the table."""

    cell: tuple[int, int]
    prompt: list[int]
    answer: list[int]


@torch.no_grad()
def passkey(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> PasskeyResult:
    """Ask a transformers language model for keys hidden in filler text (see `exsel.data.passkey`).

    A key counts as found if greedy decoding continues the prompt with its five digits. No token is generated: greedy
    decoding writes the key if and only if each of the key's tokens is the most likely after the prompt and the tokens
    before it. One forward pass over prompt and key shows this.

    Args:
        model: a causal model; evaluated uncompiled, in evaluation mode.
        tokenizer: the model's own.
        lengths: of the documents in tokens, as for training data: with the key and the end-of-text token.
        depths: where the key stands among the filler, from 0 (before all of it) to 1 (right before the question). In a
            short text, depths between the same two sentences are the same place.
        samples: keys for each length and depth.
        seed: seed of the keys, which do not depend on the other lengths and depths.
        batch_size: documents at a time.
        on_batch: called after each batch with (documents done, documents in all).

    Raises:
        ExselError: a length beyond the model's learned positions or too short for the key and the question, a depth
            outside [0, 1], an empty list, a tokenizer that cannot write digits, or logits that are not numbers.
    """
    for what, values in (("lengths", lengths), ("depths", depths)):
        if not values or len(set(values)) < len(values):
            raise ExselError(f"passkey {what} must be given, each once, got {list(values)}")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ExselError(f"a passkey depth lies between 0 (before the text) and 1 (after it), got {depth}")
    if samples < 1 or batch_size < 1:
        raise ExselError(f"passkey samples and batch_size must be at least 1, got {samples} and {batch_size}")
    check_positions(model, max(lengths))
    questions = list(_questions(tokenizer, lengths, depths, samples, seed))
    correct = [[0] * len(depths) for _ in lengths]
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            for start in range(0, len(questions), batch_size):
                batch = questions[start : start + batch_size]
                for question, found in zip(batch, _answer(model, batch), strict=True):
                    row, column = question.cell
                    correct[row][column] += found
                if on_batch is not None:
                    on_batch(start + len(batch), len(questions))
    finally:
        model.train(was_training)
    return PasskeyResult(
        lengths=tuple(lengths),
        depths=tuple(depths),
        samples=samples,
        seed=seed,
        correct=tuple(map(tuple, correct)),
    )


def _questions(
    tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
) -> Iterator[_Question]:
    for row, length in enumerate(lengths):
        wanted = []
        for depth in depths:
            chance = random.Random(f"{seed} {length} {depth:g}")
            wanted += [(random_key(chance), depth) for _ in range(samples)]
        for index, document in enumerate(fit_documents(wanted, tokenizer, length)):
            ids, (size, _) = encode([(document.prompt, False), (document.text, False)], tokenizer)
            prompt, whole = ids[:size].tolist(), ids[size:].tolist()
            if whole[:size] != prompt:
                raise ExselError(
                    "this tokenizer makes one token of the question's end and the key's beginning, so that the key "
                    "cannot be asked for: choose one that splits words"
                )
            yield _Question((row, index // samples), prompt, whole[size:])


def _answer(model: torch.nn.Module, batch: Sequence[_Question]) -> list[bool]:
    """Whether greedy decoding writes each key."""
    device = next(model.parameters()).device
    rows = [torch.tensor(question.prompt + question.answer, device=device) for question in batch]
    # Padding is on the right, to which tokens of a causal model do not attend.
    arguments: dict[str, Any] = {"input_ids": pad_sequence(rows, batch_first=True), "use_cache": False}
    if len({len(row) for row in rows}) > 1:
        arguments["attention_mask"] = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    first = min(len(question.prompt) for question in batch) - 1
    kept = arguments["input_ids"].shape[1] - first
    # The logits of a long text with a large vocabulary are larger than the model: only the last are computed.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = kept
    logits: Tensor = model(**arguments).logits[:, -kept:]
    if logits.isnan().any():  # argmax of NaN would count as a key that was not found
        raise ExselError("the model gives logits that are no numbers: its weights are of no use")
    likeliest = logits.argmax(-1).tolist()
    starts = [len(question.prompt) - 1 - first for question in batch]
    return [
        tokens[start : start + len(question.answer)] == question.answer
        for question, tokens, start in zip(batch, likeliest, starts, strict=True)
    ]
