"""Stock ``scaled_dot_product_attention`` with the fewest passes around it.

Floor of :func:`exclude` as a pass of its own: read y and v, write z (forward); read dz, y and v, write dy and dv
(backward): 3 and 5 tensors of the output's size against the many times more that attention and the projections
move. It saves only y and v, which the attention has saved anyway. What is written here as several eager passes
becomes one loop forward and one backward under ``torch.compile``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Sums run over 2⁻⁸ v̂ and products use 2⁸ v̂, so that y·v̂ may exceed the largest float where z does not.
_SMALL = 2.0**-8
_LARGE_OVER_SMALL = 2.0**16


def exclude(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> Tensor:
    """As :func:`exsel.reference.exclude`; the backward is differentiable in its turn."""
    z: Tensor = _Exclude.apply(y, own_value, strength, eps)  # type: ignore[no-untyped-call]
    return z


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
) -> Tensor:
    """As :func:`exsel.reference.attention`."""
    if query_scale is not None:
        query = (query * query_scale.unsqueeze(-1)).to(query.dtype)
    if value_scale is not None:
        value = (value * value_scale.unsqueeze(-1)).to(value.dtype)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.shape[-3] != key.shape[-3],
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _direction(v: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """2⁻⁸ v̂ [..., D], 2⁻⁸ max(‖v‖, eps) [..., 1], and whether ‖v‖ > eps as 0 or 1 [..., 1]."""
    # Scaled by a power of two where its squares could overflow or vanish: products only, no division an element.
    exponent = 1024 if v.dtype == torch.float64 else 128
    largest = torch.linalg.vector_norm(v.detach(), ord=math.inf, dim=-1, keepdim=True)
    one = torch.ones_like(largest)
    too_large, too_small = largest > 2.0 ** (exponent * 3 // 8), largest < 2.0 ** -(exponent * 5 // 16)
    down, up = 2.0 ** -(exponent * 5 // 8), 2.0 ** (exponent // 2)
    scale = torch.where(too_large, down, torch.where(too_small, up, one))
    unscale = torch.where(too_large, 1 / down, torch.where(too_small, 1 / up, one))
    scaled = v * scale
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    floor = eps * scale
    length = torch.maximum(norm, floor)
    return scaled * (_SMALL / length), length * (_SMALL * unscale), (norm > floor).to(v.dtype)


def _by_token(x: Tensor, num_kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[..., H, T, D] as [..., T, Hkv, H / Hkv, D], a view: the order in memory of what a projection wrote."""
    grouped: Tensor = x.to(dtype).transpose(-3, -2).unflatten(-2, (num_kv_heads, -1))
    return grouped


def _by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`_by_token`."""
    # In this order: compiled by torch 2.11 a function that returns an intermediate, which .to() may do, gets
    # gradients of 0 (pytorch#180642).
    return x.to(dtype).flatten(-3, -2).transpose(-3, -2)


class _Exclude(torch.autograd.Function):
    """Forward and backward of the projection; c = y·v̂ and s = dz·v̂ below are 2⁻⁸ of themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> Tensor:
        num_kv_heads = own_value.shape[-3]
        dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        unit, _, is_unit = _direction(_by_token(own_value, num_kv_heads, dtype), eps)
        grouped_y = _by_token(y, num_kv_heads, dtype)
        c = _dot(grouped_y, unit)
        # unit first: 2¹⁶ · 2⁻⁸ v̂ is representable where 2¹⁶ c need not be.
        rest = torch.addcmul(grouped_y, unit, c, value=-_LARGE_OVER_SMALL)
        # The projection once more: it removes what rounding left of v̂ (see the reference), by 2 − ‖v̂‖² ≈ 1/‖v̂‖² for
        # a v̂ that rounding made too long or too short.
        along = -_dot(rest, unit) * (2 - _dot(unit, unit) * _LARGE_OVER_SMALL) * is_unit
        if strength is not None:
            alpha = _by_token(strength.unsqueeze(-1), num_kv_heads, dtype)
            along = alpha * along + (1 - alpha) * c
        return _by_head(torch.addcmul(rest, unit, along, value=_LARGE_OVER_SMALL), y.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, own_value, strength, ctx.eps = inputs
        ctx.save_for_backward(y, own_value, strength)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        """dy = dz − α s v̂;  dv = −(α / ‖v‖)(c (dz − s v̂) + s (y − c v̂)), summed over the group;  dα = −c s."""
        y, own_value, strength = ctx.saved_tensors
        num_kv_heads = own_value.shape[-3]
        dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        unit, length, is_unit = _direction(_by_token(own_value, num_kv_heads, dtype), ctx.eps)
        grouped_y, grouped_dz = _by_token(y, num_kv_heads, dtype), _by_token(dz, num_kv_heads, dtype)
        c, s = _dot(grouped_y, unit), _dot(grouped_dz, unit)
        alpha = 1.0 if strength is None else _by_token(strength.unsqueeze(-1), num_kv_heads, dtype)
        dy = torch.addcmul(grouped_dz, unit, alpha * s, value=-_LARGE_OVER_SMALL)
        # Below eps the norm is a constant and its derivative, the terms in v̂, is absent.
        across_dz = torch.addcmul(grouped_dz, unit, s * is_unit, value=-_LARGE_OVER_SMALL)
        across_y = torch.addcmul(grouped_y, unit, c * is_unit, value=-_LARGE_OVER_SMALL)
        dv = across_dz * (alpha * c / length) + across_y * (alpha * s / length)
        dstrength = None
        if strength is not None:
            dstrength = _by_head(-(c * s) * _LARGE_OVER_SMALL, strength.dtype).squeeze(-1)
        return (
            _by_head(dy, y.dtype),
            _by_head(-dv.sum(dim=-2, keepdim=True), own_value.dtype),
            dstrength,
            None,
        )
