from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache

from exsel.nn.positions import Positions

TOKENS, PADDING = 6, 2
#: Of a row with padding and one without.
COUNTS = torch.ones(2, TOKENS, dtype=torch.bool)
COUNTS[0, :PADDING] = False
PLACE = torch.arange(TOKENS)
MADE_UP = PLACE.expand(2, -1)
REAL = (COUNTS.long().cumsum(-1) - 1).clamp_min(0)
#: Two sequences in the first row.
RESTARTING = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]])
CAUSAL = PLACE[:, None] >= PLACE
WINDOW = CAUSAL & (PLACE[:, None] - PLACE < 3)
PACKED = CAUSAL & ((RESTARTING - PLACE)[:, :, None] == (RESTARTING - PLACE)[:, None, :])


def four_dimensional(mask: Tensor) -> Tensor:
    return (mask & COUNTS[:, None, :]).unsqueeze(1)


def added(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


MASKS = {
    "boolean": four_dimensional(CAUSAL),
    "added": added(four_dimensional(CAUSAL)),
    "added with other biases": added(four_dimensional(CAUSAL)) - 100 * torch.rand(2, 3, TOKENS, TOKENS),
    "of what is hidden": ~four_dimensional(CAUSAL),
    "not causal": four_dimensional(torch.ones_like(CAUSAL)),
    "one row": four_dimensional(torch.ones_like(CAUSAL))[:, :, :1],
    "of tokens": COUNTS,
    "of tokens as integers": COUNTS.long(),
    "with empty slots": torch.nn.functional.pad(four_dimensional(CAUSAL), (0, 3)),
    "FlexAttention's": create_block_mask(
        lambda row, head, query, key: (query >= key) & COUNTS[row, key], 2, None, TOKENS, TOKENS, device="cpu"
    ),
}


def places(
    given: Tensor | None, mask: object, cache: object = None, has_window: bool = False, first: int = 0
) -> Tensor:
    positions = Positions(given, mask, cache, 0, has_window)
    return positions.of(TOKENS - first, 2, torch.device("cpu")).expand(2, -1)


@pytest.mark.parametrize("given", [None, MADE_UP, MADE_UP[:1], REAL])
@pytest.mark.parametrize("mask", MASKS)
def test_the_mask_tells_what_the_caller_did_not(given: Tensor | None, mask: str) -> None:
    assert torch.equal(places(given, MASKS[mask])[COUNTS], REAL[COUNTS] + 1)


@pytest.mark.parametrize("mask", [four_dimensional(WINDOW), added(four_dimensional(WINDOW)), COUNTS])
@pytest.mark.parametrize("given", [None, MADE_UP, REAL])
def test_a_window_hides_no_padding(given: Tensor | None, mask: Tensor) -> None:
    assert torch.equal(places(given, mask, has_window=True)[COUNTS], REAL[COUNTS] + 1)


def test_what_counts_from_one() -> None:
    assert torch.equal(places(MADE_UP + 1, MASKS["boolean"])[COUNTS], REAL[COUNTS] + 2)


@pytest.mark.parametrize("given", [MADE_UP + 16, RESTARTING])
@pytest.mark.parametrize("mask", [None, "boolean", "FlexAttention's"])
def test_positions_of_the_caller_stay(given: Tensor, mask: str | None) -> None:
    assert torch.equal(places(given, MASKS[mask] if mask else None)[1], given[1] + 1)


@pytest.mark.parametrize("given", [None, MADE_UP, RESTARTING])
def test_packed_by_the_mask(given: Tensor | None) -> None:
    assert torch.equal(places(given, PACKED.unsqueeze(1)), RESTARTING + 1)


@pytest.mark.parametrize("kind", ["full", "window", "FlexAttention's"])
@pytest.mark.parametrize("are_given", [False, True])
def test_a_later_pass(kind: str, are_given: bool) -> None:
    """A window and FlexAttention do not show the padding then: the cache has kept it."""
    counts = torch.cat((COUNTS, torch.ones(2, 1, dtype=torch.bool)), dim=1)
    mask, later = MASKS["boolean"], counts[:, None, None].clone()
    if kind == "window":
        mask, later[..., : TOKENS - 2] = four_dimensional(WINDOW), False
    elif kind == "FlexAttention's":
        mask = MASKS[kind]
        later = create_block_mask(lambda row, head, query, key: counts[row, key], 2, None, 1, TOKENS + 1, device="cpu")
    cache = DynamicCache()
    places(MADE_UP if are_given else None, mask, cache, kind == "window")
    cache.update(*torch.zeros(2, 2, 1, TOKENS, 1), 0)
    given = torch.full((2, 1), TOKENS) if are_given else None
    found = places(given, later, cache, kind == "window", first=TOKENS - 1)
    assert torch.equal(found, counts.sum(-1, keepdim=True))


def test_a_cache_used_again_forgets_padding() -> None:
    cache = DynamicCache()
    for mask in (four_dimensional(WINDOW), None):
        places(MADE_UP, mask, cache, has_window=True)
        cache.update(*torch.zeros(2, 2, 1, TOKENS, 1), 0)
        cache.crop(-TOKENS)
    cache.update(*torch.zeros(2, 2, 1, TOKENS, 1), 0)
    later = torch.ones(2, 1, 1, TOKENS + 1, dtype=torch.bool)
    assert places(None, later, cache, has_window=True, first=TOKENS - 1).flatten().tolist() == [TOKENS + 1] * 2


def test_a_mask_of_other_tokens_says_nothing() -> None:
    assert torch.equal(places(None, COUNTS[:, :3]), MADE_UP + 1)
    assert torch.equal(places(None, COUNTS.repeat(3, 1)), MADE_UP + 1)
    assert torch.equal(places(None, torch.ones(2, 1, 4, TOKENS)), MADE_UP + 1)


@pytest.mark.parametrize("mask", [None, MASKS["boolean"]])
@pytest.mark.parametrize("given", [None, REAL.clone()])
def test_the_layers_of_a_pass_find_them_once(given: Tensor | None, mask: Tensor | None) -> None:
    """Positions that were changed in place, and a later pass, are found anew."""
    cache, device = DynamicCache(), torch.device("cpu")

    def layer() -> Tensor:
        return Positions(given, mask, cache, 0, False).of(TOKENS, 2, device)

    first = layer()
    assert layer() is first
    if given is None:
        cache.update(*torch.zeros(2, 2, 1, TOKENS, 1), 0)
    else:
        given += 3
    anew = places(None if given is None else given.clone(), mask, cache)
    assert torch.equal(layer().expand(2, -1), anew)
    assert layer() is not first
