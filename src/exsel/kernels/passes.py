"""The projection in plain PyTorch: what runs where nothing is compiled, and what an exported program holds.

Bytes to move: read y and v, write z (forward); read dz, y and v, write dy and dv (backward). These formulas are several
eager passes, and one loop each in C++ (:mod:`exsel.kernels.cpp`) and in Triton
(:mod:`exsel.kernels.triton_passes`), which have the same numerics.

Shapes: query heads H, key/value heads Hkv with H a multiple of Hkv, tokens T, head dimension D. In low precision
every number of which a token has one is float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exsel.reference import accumulation_dtype

# Sums run over 2⁻⁸ v̂ and products use 2⁸ v̂, so that y·v̂ may exceed the largest float where z does not. Both factors are
# literals here: under dynamic shapes torch.compile makes a symbol of a module's constant and fails in a second call.


def project(
    y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float, out: Tensor, along: Tensor | None = None
) -> None:
    """Write z = y − α (y·v̂) v̂ with v̂ = v / max(‖v‖, eps) into ``out``.

    Args:
        y: [..., H, T, D].
        own_value: v [..., Hkv, T, D], of y's dtype.
        strength: α [..., H, T] in float32 (float64 for float64 tensors); None: 1.
        eps: the floor of ‖v‖, > 0.
        out: as y; may be y itself.
        along: receives y·v̂ [..., H, T], in strength's dtype, at most the largest number of it.
    """
    z, c = _forward(y, own_value, strength, eps)
    out.copy_(z)
    if along is not None:
        # Infinity would become NaN in the backward, times 0.
        largest = torch.finfo(along.dtype).max
        along.copy_((c / 2.0**-8).clamp(-largest, largest))


def project_backward(
    dz: Tensor,
    x: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    eps: float,
    along: Tensor | None,
    dy: Tensor | None,
    dv: Tensor | None,
    dstrength: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> None:
    """Write the gradients of :func:`project`; a target that is None is not wanted.

    Args:
        dz: the gradient of ``out``, [..., H, T, D].
        x: y; or ``out``, if ``along`` is given.
        own_value: as in the forward.
        strength: as in the forward.
        eps: as in the forward.
        along: what the forward wrote; None: computed from y.
        dy: receives the gradient of y, [..., H, T, D]; may be ``dz`` itself.
        dv: receives the gradient of v, summed over each group of query heads, [..., Hkv, T, D].
        dstrength: receives the gradient of α, [..., H, T].
        accumulate: add to what dv holds.
    """
    gradients = backward_formula(dz, x, own_value, strength, eps, along)
    for target, gradient in zip((dy, dv, dstrength), gradients, strict=True):
        if target is not None:
            assert gradient is not None
            target.copy_(gradient + dv if accumulate and target is dv else gradient)


def forward_formula(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> Tensor:
    """What :func:`project` writes, as a function that autograd and vmap can follow."""
    return _forward(y, own_value, strength, eps)[0]


def backward_formula(
    dz: Tensor, x: Tensor, own_value: Tensor, strength: Tensor | None, eps: float, along: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What :func:`project_backward` writes, as a function that autograd and vmap can follow.

    With c = y·v̂ and s = dz·v̂:  dy = dz − α s v̂;  dv = −(α / ‖v‖)(c (dz − s v̂) + s (y − c v̂)), summed over the group;
    dα = −c s.

    Returns:
        dy, dv, and dα (None without strength).
    """
    num_kv_heads, dtype = own_value.shape[-3], accumulation_dtype(x.dtype)
    unit, length, is_unit = _direction(_by_token(own_value, num_kv_heads, dtype), eps)
    grouped_x, grouped_dz = _by_token(x, num_kv_heads, dtype), _by_token(dz, num_kv_heads, dtype)
    alpha = 1.0 if strength is None else _per_row(strength, num_kv_heads, dtype)
    # c, s and length are 2⁻⁸ of themselves.
    s = _dot(grouped_dz, unit)
    # Below eps the norm is a constant, and its derivative, the terms in v̂, is absent.
    if along is None:
        c = _dot(grouped_x, unit)
        taken = c * is_unit
    else:
        c = _per_row(along, num_kv_heads, dtype) * 2.0**-8
        taken = c * (is_unit - alpha)
    across_dz = torch.addcmul(grouped_dz, unit, s * is_unit, value=-(2.0**16))
    across_y = torch.addcmul(grouped_x, unit, taken, value=-(2.0**16))
    dy = torch.addcmul(grouped_dz, unit, alpha * s, value=-(2.0**16))
    dv = across_dz * (alpha * c / length) + across_y * (alpha * s / length)
    dstrength = None if strength is None else _by_head(-(c * s) * 2.0**16, strength.dtype).squeeze(-1)
    return _by_head(dy, x.dtype), _by_head(-dv.sum(dim=-2, keepdim=True), own_value.dtype), dstrength


def _forward(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """What :func:`project` writes, and 2⁻⁸ y·v̂ [..., H, T]."""
    num_kv_heads, dtype = own_value.shape[-3], accumulation_dtype(y.dtype)
    unit, _, is_unit = _direction(_by_token(own_value, num_kv_heads, dtype), eps)
    grouped_y = _by_token(y, num_kv_heads, dtype)
    c = _dot(grouped_y, unit)
    # unit first: 2¹⁶ · 2⁻⁸ v̂ is representable where 2¹⁶ c need not be.
    rest = torch.addcmul(grouped_y, unit, c, value=-(2.0**16))
    # The projection once more: it removes what rounding left of v̂ (see the reference), by 2 − ‖v̂‖² ≈ 1/‖v̂‖² for
    # a v̂ that rounding made too long or too short.
    left = -_dot(rest, unit) * (2 - _dot(unit, unit) * 2.0**16) * is_unit
    if strength is not None:
        alpha = _per_row(strength, num_kv_heads, dtype)
        left = alpha * left + (1 - alpha) * c
    z = torch.addcmul(rest, unit, left, value=2.0**16)
    return _by_head(z, y.dtype), _by_head(c, dtype).squeeze(-1)


def _direction(v: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """2⁻⁸ v̂ [..., D], 2⁻⁸ max(‖v‖, eps) [..., 1], and whether ‖v‖ > eps as 0 or 1 [..., 1]."""
    # Scaled by a power of two where its squares could overflow or vanish, which costs no division an element.
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
    return scaled * (2.0**-8 / length), length * (2.0**-8 * unscale), (norm > floor).to(v.dtype)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _by_token(x: Tensor, num_kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[..., H, T, D] as [..., T, Hkv, H / Hkv, D], a view: the order in memory of what a projection wrote."""
    grouped: Tensor = x.to(dtype).transpose(-3, -2).unflatten(-2, (num_kv_heads, -1))
    return grouped


def _per_row(x: Tensor, num_kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[..., H, T] as [..., T, Hkv, H / Hkv, 1], a view."""
    return _by_token(x.unsqueeze(-1), num_kv_heads, dtype)


def _by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`_by_token`."""
    # In this order: compiled by torch 2.11 a function that returns an intermediate, which .to() may do, gets
    # gradients of 0 (pytorch#180642).
    return x.to(dtype).flatten(-3, -2).transpose(-3, -2)
