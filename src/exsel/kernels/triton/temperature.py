"""Inverse temperatures τ = tanh(w · GELU(x)) + 1 + σ(a) log n of all heads, and their gradients: one pass each.

Floor: read the features once, forward; read them once and write their gradient once, backward. The gradients of w and
a are sums over all tokens: each program writes the sum over its own, and a second, small launch adds these up in one
order, the same on every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from exsel.kernels.triton.tuning import Config, padded

_SQRT_HALF = tl.constexpr(0.5**0.5)
_NORMAL_DENSITY_AT_0 = tl.constexpr(0.3989422804014327)

#: Features that one thread holds: several 16-byte loads in flight, and all that is made of them stays in registers.
_NUMBERS = 8

#: Programs of the backward kernel, about: some for each multiprocessor of the largest chips, few enough that their
#: partial sums are small beside the features.
_BACKWARD_PROGRAMS = 2048


@triton.jit
def _normal_cdf(x: tl.tensor) -> tl.tensor:
    return 0.5 + 0.5 * tl.erf(x * _SQRT_HALF)


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """Relative accuracy of float32 everywhere: a power series near 0, where 1 − e⁻²ˣ would cancel.

    Source: S. Moshier, Cephes, tanhf.
    """
    is_near = tl.abs(x) < 0.625
    near = tl.where(is_near, x, 0.0)
    square = near * near
    series = ((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square
    series = ((series + 1.33314422036e-1) * square - 3.33332819422e-1) * square * near + near
    e = tl.exp(-2 * tl.abs(x))
    ratio = (1 - e) / (1 + e)
    return tl.where(is_near, series, tl.where(x < 0, -ratio, ratio))


@triton.jit
def temperature_kernel(
    features: tl.tensor,
    weight: tl.tensor,
    position: tl.tensor,
    position_logit: tl.tensor,
    tau: tl.tensor,
    stride_xb: tl.tensor,
    stride_xh: tl.tensor,
    stride_xt: tl.tensor,
    stride_xd: tl.tensor,
    stride_wh: tl.tensor,
    stride_wd: tl.tensor,
    stride_nb: tl.tensor,
    stride_nt: tl.tensor,
    stride_ah: tl.tensor,
    num_heads: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    FEATURE_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """BLOCK_T of the ``num_rows`` = B · T tokens of one head; neighbours in memory run at the same time."""
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    row = (tl.program_id(0) // num_heads).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    has_row = row < num_rows
    batch, token = row // num_tokens, row % num_tokens
    dim = tl.arange(0, BLOCK_D)
    has_dim = dim < FEATURE_DIM

    x_offset = batch * stride_xb + head * stride_xh + token * stride_xt
    inside = has_row[:, None] & has_dim[None, :]
    x = tl.load(features + x_offset[:, None] + dim[None, :] * stride_xd, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + head * stride_wh + dim * stride_wd, mask=has_dim, other=0.0).to(tl.float32)
    result = tanh(tl.sum(x * _normal_cdf(x) * w[None, :], axis=1))
    if position_logit is None:
        result += 1
    else:
        a = tl.load(position_logit + head * stride_ah).to(tl.float32)
        n = tl.load(position + batch * stride_nb + token * stride_nt, mask=has_row, other=1)
        result += 1 + tl.sigmoid(a) * tl.log(n.to(tl.float32))
    tl.store(tau + (batch * num_heads + head) * num_tokens + token, result, mask=has_row)


@triton.jit
def temperature_backward_kernel(
    dtau: tl.tensor,
    features: tl.tensor,
    weight: tl.tensor,
    position: tl.tensor,
    position_logit: tl.tensor,
    dfeatures: tl.tensor,
    dweight: tl.tensor,
    dlogit: tl.tensor,
    stride_tb: tl.tensor,
    stride_th: tl.tensor,
    stride_tt: tl.tensor,
    stride_xb: tl.tensor,
    stride_xh: tl.tensor,
    stride_xt: tl.tensor,
    stride_xd: tl.tensor,
    stride_wh: tl.tensor,
    stride_wd: tl.tensor,
    stride_nb: tl.tensor,
    stride_nt: tl.tensor,
    stride_ah: tl.tensor,
    stride_dxb: tl.tensor,
    stride_dxh: tl.tensor,
    stride_dxt: tl.tensor,
    stride_dxd: tl.tensor,
    num_heads: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    FEATURE_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Every so many-th BLOCK_T of one head's tokens; their sums go to ``dweight`` [P, H, D] and ``dlogit`` [P, H].

    With f = w · GELU(x):  dx = dτ tanh'(f) w GELU'(x);  dw = Σ dτ tanh'(f) GELU(x);  da = σ'(a) Σ dτ log n.
    """
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    part = tl.program_id(0) // num_heads
    num_parts = tl.num_programs(0) // num_heads
    dim = tl.arange(0, BLOCK_D)
    has_dim = dim < FEATURE_DIM
    w = tl.load(weight + head * stride_wh + dim * stride_wd, mask=has_dim, other=0.0).to(tl.float32)

    weight_sum = tl.zeros([BLOCK_D], tl.float32)
    logit_sum = tl.zeros([BLOCK_T], tl.float32)
    for block in range(part, tl.cdiv(num_rows, BLOCK_T), num_parts):
        row = tl.cast(block, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        has_row = row < num_rows
        batch, token = row // num_tokens, row % num_tokens
        x_offset = batch * stride_xb + head * stride_xh + token * stride_xt
        inside = has_row[:, None] & has_dim[None, :]
        x = tl.load(features + x_offset[:, None] + dim[None, :] * stride_xd, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(dtau + batch * stride_tb + head * stride_th + token * stride_tt, mask=has_row, other=0.0)
        if position_logit is not None:
            n = tl.load(position + batch * stride_nb + token * stride_nt, mask=has_row, other=1)
            logit_sum += d * tl.log(n.to(tl.float32))
        cdf = _normal_cdf(x)
        gelu = x * cdf
        # tanh' as 4 e / (1 + e)², which unlike 1 − tanh² does not cancel.
        e = tl.exp(-2 * tl.abs(tl.sum(gelu * w[None, :], axis=1)))
        df = d * 4 * e / ((1 + e) * (1 + e))
        weight_sum += tl.sum(gelu * df[:, None], axis=0)
        slope = cdf + x * _NORMAL_DENSITY_AT_0 * tl.exp(-0.5 * x * x)
        dx_offset = batch * stride_dxb + head * stride_dxh + token * stride_dxt
        dx = (df[:, None] * w[None, :] * slope).to(dfeatures.dtype.element_ty)
        tl.store(dfeatures + dx_offset[:, None] + dim[None, :] * stride_dxd, dx, mask=inside)

    place = part * num_heads + head
    tl.store(dweight + place * FEATURE_DIM + dim, weight_sum, mask=has_dim)
    if position_logit is not None:
        share = tl.sigmoid(tl.load(position_logit + head * stride_ah).to(tl.float32))
        tl.store(dlogit + place, tl.sum(logit_sum, axis=0) * share * (1 - share))


def inverse_temperature(
    features: Tensor,
    weight: Tensor,
    position: Tensor | None,
    position_logit: Tensor | None,
    *,
    config: Config | None = None,
) -> Tensor:
    """τ = tanh(w · GELU(x)) + 1 + σ(a) log n, float32 ``[B, H, T]``.

    Args:
        features: x ``[B, H, T, D]``, any strides.
        weight: w, one a head ``[H, D]`` or one for all ``[1, D]``.
        position: n ``[B, T]``, integers from 1, any strides; read where there is a ``position_logit``.
        position_logit: a, one a head ``[H]`` or one for all ``[1]``; ``None``: without the log n term.
        config: ``BLOCK_T`` (tokens a program) and ``num_warps``; ``None`` for what suits D.
    """
    batch, num_heads, num_tokens, feature_dim = features.shape
    config = config or default_config(feature_dim)
    tau = features.new_empty(batch, num_heads, num_tokens, dtype=torch.float32)
    programs = num_heads * triton.cdiv(batch * num_tokens, config["BLOCK_T"])
    with torch.cuda.device_of(features):
        temperature_kernel[(programs,)](
            features,
            weight,
            position,
            position_logit,
            tau,
            *features.stride(),
            *_parameter_strides(weight, position, position_logit),
            num_heads,
            num_tokens,
            batch * num_tokens,
            FEATURE_DIM=feature_dim,
            BLOCK_D=padded(feature_dim),
            **config,
            enable_fp_fusion=True,
        )
    return tau


def inverse_temperature_backward(
    dtau: Tensor,
    features: Tensor,
    weight: Tensor,
    position: Tensor | None,
    position_logit: Tensor | None,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of :func:`inverse_temperature`, from dτ float32 ``[B, H, T]`` with any strides.

    Returns:
        dx, dw and, where there is a ``position_logit``, da: each in the shape and dtype of its input.
    """
    batch, num_heads, num_tokens, feature_dim = features.shape
    config = config or default_config(feature_dim)
    blocks = triton.cdiv(batch * num_tokens, config["BLOCK_T"])
    parts = min(blocks, triton.cdiv(_BACKWARD_PROGRAMS, num_heads))
    dfeatures = torch.empty_like(features)
    dweight = features.new_empty(parts, num_heads, feature_dim, dtype=torch.float32)
    dlogit = None if position_logit is None else features.new_empty(parts, num_heads, dtype=torch.float32)
    with torch.cuda.device_of(features):
        temperature_backward_kernel[(num_heads * parts,)](
            dtau,
            features,
            weight,
            position,
            position_logit,
            dfeatures,
            dweight,
            dlogit,
            *dtau.stride(),
            *features.stride(),
            *_parameter_strides(weight, position, position_logit),
            *dfeatures.stride(),
            num_heads,
            num_tokens,
            batch * num_tokens,
            FEATURE_DIM=feature_dim,
            BLOCK_D=padded(feature_dim),
            **config,
            enable_fp_fusion=True,
        )
    return (
        dfeatures,
        _add_parts(dweight, weight),
        None if dlogit is None or position_logit is None else _add_parts(dlogit, position_logit),
    )


def default_config(feature_dim: int) -> Config:
    """So many tokens that a thread holds ``_NUMBERS`` features: memory-bound, it needs no search."""
    num_warps = min(16, max(4, padded(feature_dim) // 512))
    return {"BLOCK_T": max(1, 32 * num_warps * _NUMBERS // padded(feature_dim)), "num_warps": num_warps}


def _add_parts(parts: Tensor, parameter: Tensor) -> Tensor:
    """The sum over programs, and over heads where they share the parameter: parts [P, H, …] as the parameter."""
    shared = parameter.shape[0] != parts.shape[1]
    return parts.sum(dim=(0, 1) if shared else 0).view(parameter.shape).to(parameter.dtype)


def _parameter_strides(weight: Tensor, position: Tensor | None, position_logit: Tensor | None) -> tuple[int, ...]:
    """Of w, n and a, a parameter that all heads share having a stride of 0 from head to head."""
    by_head = weight.stride(0) if weight.shape[0] > 1 else 0, weight.stride(1)
    if position is None or position_logit is None:
        return *by_head, 0, 0, 0
    return *by_head, *position.stride(), position_logit.stride(0) if position_logit.shape[0] > 1 else 0
