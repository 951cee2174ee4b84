"""Every mistake that the operators promise to name, before any work starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import exsel

Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 5, 8)


@pytest.mark.parametrize(
    ("y", "own_value", "options", "message"),
    [
        (Q[0, 0], Q[0, 0], {}, "y and own_value must be"),
        (Q, K[0], {}, "y and own_value must be"),
        (Q, K[:1], {}, "own_value must hold one value for each token of y"),
        (Q, K[:, :, :4], {}, "own_value must hold one value for each token of y.*cache"),
        (Q, K[..., :4], {}, "own_value must hold one value for each token of y"),
        (Q[:, :3], K, {}, "3 heads of y must be a multiple of the 2 heads of own_value"),
        (Q, K[:, :0], {}, "at least one head"),
        (Q[:, :0], K, {}, "at least one head and a head_dim of at least 1"),
        (Q[..., :0], K[..., :0], {}, "at least one head and a head_dim of at least 1"),
        (Q, K, {"eps": 0.0}, "eps must be positive, got 0"),
        (Q, K, {"eps": -1e-12}, "eps must be positive"),
        (Q, K, {"eps": math.nan}, "eps must be positive"),
        (Q, K, {"strength": math.nan}, "strength must be finite"),
        (Q, K, {"strength": math.inf}, "strength must be finite"),
        (Q, K, {"strength": torch.ones(3)}, r"strength must be .* one number a head \[4\]"),
        (Q, K, {"strength": torch.ones(2, 4, 5, 8)}, "strength must be"),
        (Q, K, {"backend": "flash"}, "backend must be one of auto, reference, sdpa; got 'flash'"),
    ],
)
def test_exclude_value_errors(y: Tensor, own_value: Tensor, options: dict[str, Any], message: str) -> None:
    for needs_gradient in (True, False):  # without one, values take a shorter way
        with torch.set_grad_enabled(needs_gradient), pytest.raises(ValueError, match=message):
            exsel.exclude(y, own_value, **options)


@pytest.mark.parametrize(
    ("y", "own_value", "options", "message"),
    [
        (Q.int(), K.int(), {}, "y must be a floating-point tensor, got torch.int32"),
        (Q, K.int(), {}, "own_value must be a floating-point tensor"),
        (Q, K.double(), {}, "own_value must have the dtype of y, torch.float32; got torch.float64"),
        (Q, K, {"strength": torch.ones(4, dtype=torch.int64)}, "strength must be a floating-point tensor"),
        (
            Q.to(torch.float8_e4m3fn),
            K.to(torch.float8_e4m3fn),
            {},
            "y must be cast to float16, .*got torch.float8_e4m3fn",
        ),
        (Q.to_sparse(), K.to_sparse(), {}, "y must be a dense tensor, got a sparse_coo one"),
        (Q.to_mkldnn(), K.to_mkldnn(), {}, "y must be a dense tensor, got a _mkldnn one"),
        (Q, None, {}, "own_value must be a tensor, got NoneType"),
        (Q, K, {"strength": False}, "strength must be a number, a tensor or None.*got False"),
        (Q, K, {"strength": True}, "strength must be a number, a tensor or None.*got True"),
        (Q, K, {"strength": "learned"}, "strength must be a number, a tensor or None.*got 'learned'"),
    ],
)
def test_exclude_type_errors(y: Tensor, own_value: Tensor, options: dict[str, Any], message: str) -> None:
    for needs_gradient in (True, False):
        with torch.set_grad_enabled(needs_gradient), pytest.raises(TypeError, match=message):
            exsel.exclude(y, own_value, **options)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((5, 8), (5, 8), (5, 8)), {}, "query, key and value must be"),
        (((2, 4, 5, 8), (4, 5, 8), (4, 5, 8)), {}, "query, key and value must be"),
        (((2, 4, 5, 8), (2, 4, 5, 6), (2, 4, 5, 8)), {}, "query and key must agree in head_dim"),
        (((2, 4, 5, 8), (2, 4, 5, 8), (2, 4, 6, 8)), {}, "key and value in everything before"),
        (((2, 4, 5, 8), (2, 4, 5, 8), (2, 2, 5, 8)), {}, "key and value in everything before"),
        (((2, 4, 5, 8), (1, 4, 5, 8), (1, 4, 5, 8)), {}, "batch dimensions"),
        (((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)), {}, "enable_gqa=True"),
        (((2, 3, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)), {"enable_gqa": True}, "query heads must be a multiple"),
        (((8,), (8,), (8,)), {}, "query, key and value must be"),
        (((2, 4, 5, 8), (2, 0, 5, 8), (2, 0, 5, 8)), {"enable_gqa": True}, "at least one head"),
        (((2, 0, 5, 8),) * 3, {}, "at least one head"),
        (((2, 4, 5, 0),) * 3, {}, "a head_dim of at least 1"),
        (((2, 4, 5, 8), (2, 4, 5, 8), (2, 4, 5, 0)), {}, "a head_dim of at least 1"),
        (((2, 4, 5, 8),) * 3, {"attn_mask": torch.ones(5, 5).bool(), "is_causal": True}, "attn_mask and is_causal"),
        *((((1, 4, 5, 8),) * 3, {"cu_seqlens": torch.tensor(bounds)}, "cu_seqlens must be integers.* 0 to the 5 tokens")
          for bounds in ([0, 3], [5, 0], [-1, 5], [0, 4, 3, 5], [1, 5], [0, 6])),
        (((1, 4, 5, 8),) * 3, {"cu_seqlens": torch.tensor([False, True])}, "cu_seqlens must be integers"),
        (((1, 4, 5, 8),) * 3, {"cu_seqlens": torch.tensor([[0, 5]])}, "cu_seqlens must be integers"),
        (((2, 4, 5, 8),) * 3, {"attn_mask": torch.ones(5, 4).bool()}, "attn_mask must broadcast"),
        (((2, 4, 5, 8),) * 3, {"attn_mask": torch.ones(3, 1, 5, 5).bool()}, "attn_mask must broadcast"),
        (((2, 4, 5, 8),) * 3, {"dropout_p": 1.5}, "dropout_p"),
        (((2, 4, 5, 8),) * 3, {"dropout_p": -0.1}, "dropout_p"),
        (((2, 4, 5, 8),) * 3, {"own_value": Q}, "own_value is given but exclusive is False"),
        (((2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8)), {"exclusive": True}, "3 queries over 5 keys needs own_value"),
        (((2, 4, 1, 8), (2, 4, 5, 8), (2, 4, 5, 8)), {"exclusive": True}, "needs own_value.*cross-attention"),
        (((2, 4, 5, 8),) * 3, {"exclusive": True, "own_value": Q[:, :, :3]}, "own_value must hold one value"),
        (((2, 4, 5, 8),) * 3, {"exclusive": True, "strength": math.nan}, "strength must be finite"),
        (((2, 4, 5, 8),) * 3, {"exclusive": True, "strength": torch.ones(3)}, "strength must be"),
        (((2, 4, 5, 8),) * 3, {"strength": 0.5}, "strength is given but exclusive is False"),
        (((2, 4, 5, 8),) * 3, {"query_scale": torch.ones(2, 4, 4)}, "query_scale must broadcast"),
        (((2, 4, 5, 8),) * 3, {"query_scale": torch.ones(2, 4, 5, 8)}, "query_scale must broadcast"),
        (((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)), {"enable_gqa": True, "value_scale": torch.ones(2, 4, 5)},
         "value_scale must broadcast"),
        (((2, 4, 5, 8),) * 3, {"backend": "flash"}, "backend must be one of"),
        (((2, 4, 5, 8),) * 3, {"backend": "nonsense", "exclusive": True}, "backend must be one of"),
    ],
)  # fmt: skip
def test_attention_value_errors(shapes: tuple[tuple[int, ...], ...], options: dict[str, Any], message: str) -> None:
    query, key, value = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        exsel.attention(query, key, value, **options)


@pytest.mark.parametrize(
    ("dtypes", "options", "message"),
    [
        ((torch.int32,) * 3, {}, "query must be a floating-point tensor"),
        ((torch.float32, torch.float64, torch.float32), {}, "query, key and value must have one dtype"),
        ((torch.float32, torch.float32, torch.float16), {}, "query, key and value must have one dtype"),
        ((torch.float32,) * 3, {"attn_mask": torch.ones(5, 5, dtype=torch.int64)}, "attn_mask must be boolean or"),
        ((torch.float32,) * 3, {"query_scale": torch.ones(5, dtype=torch.int64)}, "query_scale must be a floating"),
        ((torch.float32,) * 3, {"value_scale": torch.ones(5, dtype=torch.int64)}, "value_scale must be a floating"),
        ((torch.float32,) * 3, {"exclusive": True, "own_value": Q.double()}, "own_value must have the dtype"),
        ((torch.float32,) * 3, {"exclusive": True, "own_value": Q.int()}, "own_value must be a floating"),
        ((torch.float8_e5m2,) * 3, {}, "query must be cast to float16, bfloat16, float32 or float64 first"),
        ((torch.float32,) * 3, {"attn_mask": [[True]]}, "attn_mask must be a tensor, got list"),
        ((torch.float32,) * 3, {"sliding_window": 2.5}, "sliding_window must be an integer, got 2.5"),
        ((torch.float32,) * 3, {"sliding_window": True}, "sliding_window must be an integer, got True"),
        ((torch.float32,) * 3, {"exclusive": None}, "exclusive must be True or False, got None"),
        ((torch.float32,) * 3, {"exclusive": 0.5}, "exclusive must be True or False, got 0.5: .* is the strength"),
        ((torch.float32,) * 3, {"exclusive": torch.tensor(True)}, "exclusive must be True or False"),
        ((torch.float32,) * 3, {"exclusive": True, "strength": True}, "strength must be a number.*got True"),
        ((torch.float32,) * 3, {"exclusive": True, "strength": torch.ones(4).int()}, "strength must be a floating"),
    ],
)
def test_attention_type_errors(dtypes: tuple[torch.dtype, ...], options: dict[str, Any], message: str) -> None:
    query, key, value = (Q.to(dtype) for dtype in dtypes)
    with pytest.raises(TypeError, match=message):
        exsel.attention(query, key, value, **options)
    with pytest.raises(TypeError, match=message):
        exsel.explain_backend(query, key, value, **options)


@pytest.mark.parametrize(
    ("features", "weight", "options", "message"),
    [
        (Q[0, 0], torch.zeros(4, 8), {}, "features must be"),
        (Q, torch.zeros(8), {}, "weight"),
        (Q, torch.zeros(4, 7), {}, r"features must be \[..., heads, tokens, D\] and weight"),
        (Q, torch.zeros(3, 8), {}, "weight has 3 heads, features 4"),
        (Q, torch.zeros(4, 8), {"position": torch.ones(5)}, "position and position_logit go together"),
        (Q, torch.zeros(4, 8), {"position_logit": torch.ones(4)}, "position and position_logit go together"),
        (Q, torch.zeros(4, 8), {"position": torch.ones(5), "position_logit": torch.ones(3)}, "position_logit"),
        (Q, torch.zeros(4, 8), {"position": torch.ones(4), "position_logit": torch.ones(4)}, "position"),
        (Q, torch.zeros(4, 8), {"position_form": "log"}, "position_form must be one of sigmoid, double_exponential"),
    ],
)
def test_inverse_temperature_value_errors(
    features: Tensor, weight: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        exsel.inverse_temperature(features, weight, **options)


@pytest.mark.parametrize(
    ("features", "weight", "message"),
    [
        (Q.int(), torch.zeros(4, 8), "features must be a floating-point tensor"),
        (Q, torch.zeros(4, 8).int(), "weight must be a floating-point tensor"),
    ],
)
def test_inverse_temperature_type_errors(features: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        exsel.inverse_temperature(features, weight)
