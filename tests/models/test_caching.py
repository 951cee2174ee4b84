"""Decoding with a cache equals the whole pass, for every variant, kind of cache, padding and chunking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from budget import assert_greedy
from exsel import ExselForCausalLM
from exsel.models.configuration import ExselConfig
from models.small_models import small_model

TOKENS = 11


def token_ids(model: ExselForCausalLM, batch: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randint(model.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(1))


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def make_cache(kind: str, config: ExselConfig) -> Any:
    if kind == "static":
        return StaticCache(config=config, max_cache_len=TOKENS + 5)
    return DynamicCache(config=config)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", [[1] * TOKENS, [7, 1, 1, 1, 1], [4, 3, 4]], ids=["tokens", "prefill", "chunks"])
@torch.no_grad()
def test_cached_equals_whole(variant: dict[str, Any], shape: dict[str, Any], kind: str, chunks: list[int]) -> None:
    model = small_model(**variant, **shape)
    ids, cache = token_ids(model), make_cache(kind, model.config)
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(chunks, dim=1)]
    assert_same(torch.cat(parts, dim=1), model(ids).logits)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("explicit_positions", [False, True])
@torch.no_grad()
def test_left_padded_batch(variant: dict[str, Any], shape: dict[str, Any], kind: str, explicit_positions: bool) -> None:
    model = small_model(**variant, **shape)
    ids, padding = token_ids(model), torch.tensor([0, 4])
    real = (torch.arange(TOKENS) >= padding[:, None]).long()
    cache, logits = make_cache(kind, model.config), []
    for first, last in [(0, 6), (6, 7), (7, 9), (9, TOKENS)]:
        given = {"attention_mask": real[:, :last], "past_key_values": cache, "use_cache": True}
        if explicit_positions:
            given["position_ids"] = (real.cumsum(-1) - 1).clamp_min(0)[:, first:last]
        logits.append(model(ids[:, first:last], **given).logits)
    whole = torch.cat(logits, dim=1)
    assert_same(whole[:1], model(ids[:1]).logits)
    assert_same(whole[1:, 4:], model(ids[1:, 4:]).logits)
    without_cache = model(ids, attention_mask=real).logits
    assert_same(without_cache[1:, 4:], whole[1:, 4:])


@pytest.mark.parametrize("implementation", [None, "static"])
@torch.no_grad()
def test_generate(variant: dict[str, Any], shape: dict[str, Any], implementation: str | None) -> None:
    """Greedy generation with a cache, left-padded, gives the logits of the whole pass over what it generated."""
    model = small_model(**variant, **shape)
    ids = token_ids(model, tokens=6)
    real = (torch.arange(6) >= torch.tensor([0, 3])[:, None]).long()
    generated = model.generate(
        ids,
        attention_mask=real,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        cache_implementation=implementation,
        disable_compile=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    for row, padding in enumerate([0, 3]):
        whole = model(generated.sequences[row : row + 1, padding:]).logits[0]
        assert_same(torch.stack([step[row] for step in generated.logits]), whole[-6:-1])
        assert_greedy(model, generated.sequences[row : row + 1, padding:], 6 - padding)


@torch.no_grad()
def test_generate_without_cache_is_the_same(variant: dict[str, Any]) -> None:
    model = small_model(**variant)
    arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    ids = token_ids(model, tokens=6)
    for use_cache in (True, False):
        assert_greedy(model, model.generate(ids, use_cache=use_cache, **arguments), 6)


@torch.no_grad()
def test_beam_search_reorders_the_cache(variant: dict[str, Any]) -> None:
    model = small_model(**variant)
    arguments = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    arguments |= {"return_dict_in_generate": True, "output_scores": True}
    ids = token_ids(model, tokens=6)
    cached, whole = (model.generate(ids, use_cache=use_cache, **arguments) for use_cache in (True, False))
    assert_same(cached.sequences_scores, whole.sequences_scores)


@torch.no_grad()
def test_logits_to_keep() -> None:
    model = small_model()
    ids = token_ids(model)
    whole = model(ids).logits
    assert_same(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    assert_same(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, whole[:, [0, 5]])


@torch.no_grad()
def test_packed_documents_equal_separate_ones(variant: dict[str, Any], shape: dict[str, Any]) -> None:
    """Positions that restart keep the documents apart and restart the temperatures' log n."""
    model, lengths = small_model(**variant, **shape), [4, 1, 6]
    ids = token_ids(model)
    position_ids = torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)
    packed = model(ids, position_ids=position_ids, use_cache=False).logits
    separate = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    assert_same(packed, separate)
    assert_same(model(ids, position_ids=position_ids, use_cache=True).logits, separate)
    assert (packed - model(ids).logits).abs()[:, 4:].max() > 1e-2, "else the test could not fail"


@torch.no_grad()
def test_the_future_changes_nothing(variant: dict[str, Any], shape: dict[str, Any]) -> None:
    model = small_model(**variant, **shape)
    ids = token_ids(model)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 7) % model.config.vocab_size
    before, after = model(ids).logits, model(other).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])
