"""Rows of weights in blocks against one row after the other in float64, and where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics.brute_force import Call, by_token, one_sequence
from exsel.diagnostics.attention_rows import attention_rows
from exsel.diagnostics.mixing import Mixing
from exsel.diagnostics.sequences import Tokens

B, H, HKV, T, D = 2, 4, 2, 13, 8
_NAMES = ("self_weight", "sink_mass", "entropy", "spikiness")

_WINDOW = (torch.arange(T)[:, None] - torch.arange(T)).abs() < 3
_PADDED = torch.ones(B, 1, 1, T, dtype=torch.bool)
_PADDED[1, ..., :4] = False


def random_mixing(**options: Any) -> Mixing:
    query, key, value = (torch.randn(B, heads, T, D, dtype=torch.float64) for heads in (H, HKV, HKV))
    return Mixing(query, key, value, 0.4, **options)


def formula(mixing: Mixing) -> Call:
    """Weights with every matrix there; hidden are those that a mask, an added minimum, causality or a window hides."""
    may_see = torch.ones(B, H, T, T, dtype=torch.bool)
    added = torch.zeros(B, H, T, T, dtype=torch.float64)
    for each in (mixing.mask, mixing.bias):
        if each is not None and each.dtype == torch.bool:
            may_see &= each
        elif each is not None:
            may_see &= each > torch.finfo(each.dtype).min / 2
            added += each.clamp_min(-1e6)
    if mixing.is_causal:
        may_see = may_see.tril()
    if mixing.window is not None:
        may_see &= (torch.arange(T)[:, None] - torch.arange(T)).abs() < mixing.window
    weights = torch.zeros(B, H, T, T, dtype=torch.float64)
    for row in range(B):
        for head in range(H):
            for i in range(T):
                scores = mixing.key[row, head // (H // HKV)] @ mixing.query[row, head, i] * mixing.scaling
                if mixing.softcap is not None:
                    scores = mixing.softcap * (scores / mixing.softcap).tanh()
                terms = (scores + added[row, head, i]).exp() * may_see[row, head, i]
                sink = 0.0 if mixing.sinks is None else math.exp(float(mixing.sinks[head]))
                weights[row, head, i] = terms / (terms.sum() + sink).clamp_min(1e-300)
    y = torch.stack([weights[:, head] @ mixing.value[:, head // (H // HKV)] for head in range(H)], dim=1)
    return Call(weights, y, mixing.value, may_see[:, 0])


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


KINDS: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "everything": {},
    "window": {"is_causal": True, "window": 3},
    "window on both sides": {"window": 3},
    "boolean mask": {"mask": _WINDOW.tril().view(1, 1, T, T)},
    "additive mask": {"mask": additive(_WINDOW.tril().view(1, 1, T, T).expand(B, 1, T, T))},
    "padding": {"mask": _PADDED, "is_causal": True},
    "soft cap": {"is_causal": True, "softcap": 1.5},
    "sinks": {"is_causal": True, "sinks": torch.tensor([0.0, -3.0, 2.0, 30.0])},
    "bias": {"bias": torch.linspace(-3, 3, H * T * T).view(1, H, T, T), "is_causal": True},
}


def tokens_of(name: str) -> Tokens:
    return Tokens.of(_PADDED[:, 0, 0] if name == "padding" else None, None, (B, T))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("block", [1, 7, T])
def test_equals_the_formula(name: str, block: int) -> None:
    mixing = random_mixing(**KINDS[name])
    call = formula(mixing)
    places = one_sequence(B, T)
    if name == "padding":
        places[1] = [(0, 0)] * 4 + [(2, n + 1) for n in range(T - 4)]
    found, is_verified = attention_rows(mixing, tokens_of(name), call.y, block_bytes=block * B * H * T * 8)
    expected = by_token(call, places)
    for metric in _NAMES:
        for (row, head, column), value in expected[metric].items():
            assert float(found[metric][row, head, column]) == pytest.approx(value, rel=1e-10, abs=1e-12)
    is_real = tokens_of(name).is_real
    assert is_verified.transpose(1, 2)[is_real].all()
    _, is_verified = attention_rows(mixing, tokens_of(name), call.y * 1.01, block_bytes=block * B * H * T * 8)
    assert not is_verified.transpose(1, 2)[is_real].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_change_nothing_but_rounding(dtype: torch.dtype) -> None:
    mixing = random_mixing(is_causal=True)
    mixing = replace(mixing, **{name: getattr(mixing, name).to(dtype) for name in ("query", "key", "value")})
    y = formula(replace(mixing, **{n: getattr(mixing, n).double() for n in ("query", "key", "value")})).y
    tokens = tokens_of("causal")
    whole, single = (attention_rows(mixing, tokens, y, block_bytes=size) for size in (2**30, 1))
    for name in _NAMES:
        torch.testing.assert_close(whole[0][name], single[0][name], rtol=1e-5, atol=1e-6)
    assert whole[1].all()
    assert single[1].all()


def test_uniform_attention() -> None:
    mixing = replace(random_mixing(is_causal=True), query=torch.zeros(B, H, T, D))
    found, _ = attention_rows(mixing, tokens_of("causal"), torch.zeros(B, H, T, D))
    length = torch.arange(1, T + 1).float().expand(B, H, T)
    torch.testing.assert_close(found["spikiness"], torch.ones(B, H, T))
    torch.testing.assert_close(found["entropy"], length.log())
    torch.testing.assert_close(found["effective_tokens"], length)
    torch.testing.assert_close(found["self_weight"], 1 / length)
    torch.testing.assert_close(found["sink_mass"], 1 / length)


def test_one_hot_attention() -> None:
    eye = 30 * torch.eye(T, D + T).expand(B, H, T, D + T)
    mixing = Mixing(eye, eye[:, :HKV], torch.randn(B, HKV, T, D), 1.0)
    y = mixing.value.repeat_interleave(2, dim=1)
    found, is_verified = attention_rows(mixing, tokens_of("everything"), y)
    torch.testing.assert_close(found["self_weight"], torch.ones(B, H, T))
    torch.testing.assert_close(found["spikiness"], torch.full((B, H, T), 1 / T))
    torch.testing.assert_close(found["entropy"], torch.zeros(B, H, T))
    assert not found["sink_mass"][..., 1:].any()
    assert is_verified.all()


def test_an_unknown_term_in_one_row_is_seen() -> None:
    mixing = random_mixing(is_causal=True)
    y = formula(mixing).y
    y[1, 2, 5] += 1e-3
    _, is_verified = attention_rows(mixing, tokens_of("causal"), y)
    assert (~is_verified).nonzero().tolist() == [[1, 2, 5]]


class _Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.found = max(self.found, result.nbytes)
        return result


@pytest.mark.parametrize("options", [{"is_causal": True}, {"mask": torch.ones(1, 1, 512, 512, dtype=torch.bool)}])
def test_no_more_than_a_block_is_there(options: dict[str, Any]) -> None:
    query, key, value = (torch.randn(1, heads, 512, 8) for heads in (4, 2, 2))
    mixing, limit = Mixing(query, key, value, 0.4, **options), 2**17
    with _Largest() as largest:
        attention_rows(mixing, Tokens.of(None, None, (1, 512)), query, block_bytes=limit)
    assert limit / 2 <= largest.found <= limit < 4 * 512 * 512 * 4
