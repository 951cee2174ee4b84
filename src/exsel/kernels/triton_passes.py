"""The projection z = y − α (y·v̂) v̂ and its gradients in Triton, one launch each.

A program takes a block of tokens of one key/value head: it reads v once, loops over the query heads of the group and
sums their dv in registers. Nothing else moves: forward y, v → z; backward dz, y (or z), v → dy, dv.

As in :mod:`exsel.kernels.passes`, sums run over 2⁻⁸ v̂ and products use 2⁸ v̂, so that y·v̂ may exceed the largest float
where z does not; ``unit`` is 2⁻⁸ v̂ throughout and 2¹⁶ ``unit`` is 2⁸ v̂.

``TRITON_INTERPRET=1`` in the environment before this module is imported runs the kernels on the CPU, slowly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALL = tl.constexpr(2.0**-8)
_LARGE = tl.constexpr(2.0**8)
_LARGE_OVER_SMALL = tl.constexpr(2.0**16)
# Squares of float32 above the first could overflow, of those below the second vanish: scaled by these, they do neither.
_TOO_LARGE, _DOWN, _UNDO_DOWN = tl.constexpr(2.0**48), tl.constexpr(2.0**-80), tl.constexpr(2.0**80)
_TOO_SMALL, _UP, _UNDO_UP = tl.constexpr(2.0**-40), tl.constexpr(2.0**64), tl.constexpr(2.0**-64)

#: Bytes of each tensor that one thread holds: several 16-byte loads in flight to hide the memory's latency, and few
#: enough that v̂, dv and the rows of a query head stay in registers as float32.
_FORWARD_BYTES, _BACKWARD_BYTES = 64, 32


@triton.jit
def _direction(v: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """2⁻⁸ v̂ [N, D], 2⁻⁸ max(‖v‖, eps) [N], and whether ‖v‖ > eps as 0 or 1 [N], of v [N, D] in float32."""
    largest = tl.max(tl.abs(v), 1)
    too_large, too_small = largest > _TOO_LARGE, largest < _TOO_SMALL
    scale = tl.where(too_large, _DOWN, tl.where(too_small, _UP, 1.0))
    unscale = tl.where(too_large, _UNDO_DOWN, tl.where(too_small, _UNDO_UP, 1.0))
    scaled = v * scale[:, None]
    norm = tl.sqrt_rn(tl.sum(scaled * scaled, 1))
    floor = eps * scale
    length = tl.maximum(norm, floor)
    return scaled * (1.0 / length * _SMALL)[:, None], length * _SMALL * unscale, (norm > floor).to(tl.float32)


@triton.jit
def _place(
    num_tokens: tl.tensor, num_kv_heads: tl.tensor, BLOCK_T: tl.constexpr, TOKEN_MAJOR: tl.constexpr
) -> tl.tensor:
    """The batch, the key/value head and the tokens of this program; neighbours in memory run at the same time."""
    program = tl.program_id(0)
    blocks = tl.cdiv(num_tokens, BLOCK_T)
    kv_head, block = program // blocks % num_kv_heads, program % blocks
    if TOKEN_MAJOR:
        kv_head, block = program % num_kv_heads, program // num_kv_heads % blocks
    batch = program // (num_kv_heads * blocks)
    tokens = block.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    return batch.to(tl.int64), kv_head.to(tl.int64), tokens


@triton.jit(do_not_specialize=["num_tokens", "num_kv_heads"])
def project_kernel(
    y_ptr: tl.tensor, v_ptr: tl.tensor, strength_ptr: tl.tensor, out_ptr: tl.tensor, along_ptr: tl.tensor,
    y_b: tl.tensor, y_h: tl.tensor, y_t: tl.tensor, y_d: tl.tensor,
    v_b: tl.tensor, v_h: tl.tensor, v_t: tl.tensor, v_d: tl.tensor,
    strength_b: tl.tensor, strength_h: tl.tensor, strength_t: tl.tensor,
    out_b: tl.tensor, out_h: tl.tensor, out_t: tl.tensor, out_d: tl.tensor,
    along_b: tl.tensor, along_h: tl.tensor, along_t: tl.tensor,
    num_tokens: tl.tensor, num_kv_heads: tl.tensor, eps: tl.tensor,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, TOKEN_MAJOR: tl.constexpr,
) -> None:  # fmt: skip
    """out = y − α (y·v̂) v̂; along = y·v̂."""
    batch, kv_head, tokens = _place(num_tokens, num_kv_heads, BLOCK_T, TOKEN_MAJOR)
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    in_rows = tokens < num_tokens
    inside = in_rows[:, None] & (columns < D)[None, :]

    v_at = v_ptr + batch * v_b + kv_head * v_h + tokens[:, None] * v_t + columns[None, :] * v_d
    unit, _, is_unit = _direction(tl.load(v_at, mask=inside, other=0.0).to(tl.float32), eps)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        y_at = y_ptr + batch * y_b + head * y_h + tokens[:, None] * y_t + columns[None, :] * y_d
        y = tl.load(y_at, mask=inside, other=0.0).to(tl.float32)
        # Loaded before the sums: after them, registers spill on sm_100.
        alpha = None
        if strength_ptr is not None:
            strength_at = strength_ptr + batch * strength_b + head * strength_h + tokens * strength_t
            alpha = tl.load(strength_at, mask=in_rows, other=0.0)
        c = tl.sum(y * unit, 1)
        large = unit * _LARGE_OVER_SMALL
        rest = y - large * c[:, None]
        # The projection once more: it removes what rounding left of v̂ (see the reference), by 2 − ‖v̂‖² ≈ 1/‖v̂‖² for a
        # v̂ that rounding made too long or too short.
        left = tl.sum(rest * unit, 1) * (2.0 - tl.sum(unit * large, 1)) * is_unit
        if alpha is not None:
            left = alpha * left - (1.0 - alpha) * c
        z = rest - large * left[:, None]
        if along_ptr is not None:
            along_at = along_ptr + batch * along_b + head * along_h + tokens * along_t
            tl.store(along_at, c * _LARGE, mask=in_rows)
        out_at = out_ptr + batch * out_b + head * out_h + tokens[:, None] * out_t + columns[None, :] * out_d
        tl.store(out_at, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "num_kv_heads"])
def project_backward_kernel(
    dz_ptr: tl.tensor, x_ptr: tl.tensor, v_ptr: tl.tensor, strength_ptr: tl.tensor, along_ptr: tl.tensor,
    dy_ptr: tl.tensor, dv_ptr: tl.tensor, dstrength_ptr: tl.tensor,
    dz_b: tl.tensor, dz_h: tl.tensor, dz_t: tl.tensor, dz_d: tl.tensor,
    x_b: tl.tensor, x_h: tl.tensor, x_t: tl.tensor, x_d: tl.tensor,
    v_b: tl.tensor, v_h: tl.tensor, v_t: tl.tensor, v_d: tl.tensor,
    strength_b: tl.tensor, strength_h: tl.tensor, strength_t: tl.tensor,
    along_b: tl.tensor, along_h: tl.tensor, along_t: tl.tensor,
    dy_b: tl.tensor, dy_h: tl.tensor, dy_t: tl.tensor, dy_d: tl.tensor,
    dv_b: tl.tensor, dv_h: tl.tensor, dv_t: tl.tensor, dv_d: tl.tensor,
    dstrength_b: tl.tensor, dstrength_h: tl.tensor, dstrength_t: tl.tensor,
    num_tokens: tl.tensor, num_kv_heads: tl.tensor, eps: tl.tensor,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, TOKEN_MAJOR: tl.constexpr,
    ACCUMULATE: tl.constexpr,
) -> None:  # fmt: skip
    """With s = dz·v̂: dy = dz − α s v̂; dv = −Σ (α/‖v‖)(c (dz − s v̂) + s (y − c v̂)); dα = −c s.

    x is y, or with ``along`` (c) it is z, from which y − c v̂ is z − (1 − α) c v̂.
    """
    batch, kv_head, tokens = _place(num_tokens, num_kv_heads, BLOCK_T, TOKEN_MAJOR)
    columns = tl.arange(0, BLOCK_D).to(tl.int64)
    in_rows = tokens < num_tokens
    inside = in_rows[:, None] & (columns < D)[None, :]

    v_at = v_ptr + batch * v_b + kv_head * v_h + tokens[:, None] * v_t + columns[None, :] * v_d
    unit, length, is_unit = _direction(tl.load(v_at, mask=inside, other=0.0).to(tl.float32), eps)
    large = unit * _LARGE_OVER_SMALL
    dv = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        dz_at = dz_ptr + batch * dz_b + head * dz_h + tokens[:, None] * dz_t + columns[None, :] * dz_d
        x_at = x_ptr + batch * x_b + head * x_h + tokens[:, None] * x_t + columns[None, :] * x_d
        dz = tl.load(dz_at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
        alpha = tl.full([BLOCK_T], 1.0, tl.float32)
        if strength_ptr is not None:
            strength_at = strength_ptr + batch * strength_b + head * strength_h + tokens * strength_t
            alpha = tl.load(strength_at, mask=in_rows, other=0.0)
        # Below eps the norm is a constant and its derivative, the terms in v̂, is absent: is_unit is 0. What remains of
        # y − c v̂, x being y or z, is x − (2⁸ v̂) across.
        if along_ptr is None:
            c = tl.sum(x * unit, 1)
            across = c * is_unit
        else:
            along_at = along_ptr + batch * along_b + head * along_h + tokens * along_t
            c = tl.load(along_at, mask=in_rows, other=0.0) * _SMALL
            across = c * (is_unit - alpha)
        s = tl.sum(dz * unit, 1)
        dy = dz - large * (alpha * s)[:, None]
        of_dz, of_x = alpha * c / length, alpha * s / length
        dv += large * (s * is_unit * of_dz + across * of_x)[:, None] - dz * of_dz[:, None] - x * of_x[:, None]
        if dy_ptr is not None:
            dy_at = dy_ptr + batch * dy_b + head * dy_h + tokens[:, None] * dy_t + columns[None, :] * dy_d
            tl.store(dy_at, dy.to(dy_ptr.dtype.element_ty), mask=inside)
        if dstrength_ptr is not None:
            dstrength_at = dstrength_ptr + batch * dstrength_b + head * dstrength_h + tokens * dstrength_t
            tl.store(dstrength_at, -(c * s) * _LARGE_OVER_SMALL, mask=in_rows)
    if dv_ptr is not None:
        dv_at = dv_ptr + batch * dv_b + kv_head * dv_h + tokens[:, None] * dv_t + columns[None, :] * dv_d
        if ACCUMULATE:
            dv += tl.load(dv_at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


def padded(head_dim: int) -> int:
    """The power of two that a head dimension is padded to, at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def launch_config(head_dim: int, numbers_a_thread: int) -> dict[str, int]:
    """BLOCK_T, the tokens of a program, so that a thread holds ``numbers_a_thread`` of each tensor.

    The passes are memory-bound on every chip, so that one choice serves all.
    """
    num_warps = min(16, max(4, padded(head_dim) // 512))
    return {"BLOCK_T": max(1, 32 * num_warps * numbers_a_thread // padded(head_dim)), "num_warps": num_warps}


def _strides(x: Tensor | None, dims: int) -> tuple[int, ...]:
    return (0,) * dims if x is None else x.stride()


def project(
    y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float, out: Tensor, along: Tensor | None = None
) -> None:
    """As :func:`exsel.kernels.passes.project`: y [B, H, T, D], any strides, and no float64."""
    batch_size, num_heads, num_tokens, head_dim = y.shape
    num_kv_heads = own_value.shape[1]
    config = launch_config(head_dim, _FORWARD_BYTES // y.itemsize)
    grid = (batch_size * num_kv_heads * triton.cdiv(num_tokens, config["BLOCK_T"]),)
    with torch.cuda.device_of(y):
        project_kernel[grid](
            y, own_value, strength, out, along,
            *y.stride(), *own_value.stride(), *_strides(strength, 3), *out.stride(), *_strides(along, 3),
            num_tokens, num_kv_heads, eps,
            GROUP=num_heads // num_kv_heads, D=head_dim, BLOCK_D=padded(head_dim),
            TOKEN_MAJOR=y.stride(1) < y.stride(2),
            **config, enable_fp_fusion=True,
        )  # fmt: skip


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
    """As :func:`exsel.kernels.passes.project_backward`: x [B, H, T, D], any strides, and no float64.

    dy may be dz or x, and dv may be own_value.
    """
    batch_size, num_heads, num_tokens, head_dim = x.shape
    num_kv_heads = own_value.shape[1]
    config = launch_config(head_dim, _BACKWARD_BYTES // x.itemsize)
    grid = (batch_size * num_kv_heads * triton.cdiv(num_tokens, config["BLOCK_T"]),)
    with torch.cuda.device_of(x):
        project_backward_kernel[grid](
            dz, x, own_value, strength, along, dy, dv, dstrength,
            *dz.stride(), *x.stride(), *own_value.stride(), *_strides(strength, 3), *_strides(along, 3),
            *_strides(dy, 4), *_strides(dv, 4), *_strides(dstrength, 3),
            num_tokens, num_kv_heads, eps,
            GROUP=num_heads // num_kv_heads, D=head_dim, BLOCK_D=padded(head_dim),
            TOKEN_MAJOR=x.stride(1) < x.stride(2), ACCUMULATE=accumulate,
            **config, enable_fp_fusion=True,
        )  # fmt: skip
