from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from exsel.data import load_tokenizer
from exsel.evaluation import sample_texts

TOKENIZER = load_tokenizer("bytes")
TEXT = [byte + 3 for byte in b"abcdefgh"]


class Follower(nn.Module):
    """Is sure of the next letter; after `end` the document is over."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end = ord(end) + 3

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        following = torch.where(input_ids == self.end, TOKENIZER.eos_token_id, input_ids + 1)
        # More rows than the tokenizer has words, and those the likeliest.
        logits = 1000.0 * nn.functional.one_hot(following, 300)
        logits[..., 290] = 2000.0
        return SimpleNamespace(logits=logits)


class Guesser(nn.Module):
    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        logits = torch.full((*input_ids.shape, 259), -1e9)
        logits[..., 100:110] = 0.0  # a to j
        return SimpleNamespace(logits=logits)


def draw(model: nn.Module, **options: Any) -> list[Any]:
    blocks = [{"input_ids": TEXT}] * 4
    values: dict[str, Any] = {"count": 2, "prompt_tokens": 3, "new_tokens": 5, "device": torch.device("cpu"), **options}
    return sample_texts(model, TOKENIZER, blocks, **values)


def test_a_prompt_is_gone_on_with_to_the_end_of_its_document() -> None:
    model = Follower("f").train()
    found = draw(model)
    assert [(one.prompt, one.continuation, one.text) for one in found] == [("abc", "def", "defgh")] * 2
    assert model.training


def test_models_draw_with_the_same_random_numbers() -> None:
    first, second = draw(Guesser()), draw(Guesser())
    assert first == second
    assert first[0].continuation != first[1].continuation
    assert first != draw(Guesser(), seed=1)
