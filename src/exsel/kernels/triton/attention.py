"""Attention forward in one launch: flash attention with the projection as its epilogue.

One program runs one block of queries of one head over the keys they may see, with a running softmax. Each row of
queries sees one interval of keys, whatever the causal order, the window and the packed sequences allow, and the
intervals' ends grow with the row: so a block's keys are a masked part, a part that all of its rows see, and a
masked part, and only the parts at the ends pay for masks.

Floor: 4 T S D multiplications and additions a head on the tensor cores, half of it when causal. The projection adds
one read of the block's own values, which the causal loop has just had in cache, and D operations a row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from exsel.kernels.triton.tuning import Config, choose_config, padded

_LN_2 = tl.constexpr(math.log(2))
LOG2_E = tl.constexpr(math.log2(math.e))

# As in exsel.kernels.sdpa: 2⁻⁸ y·v̂ is representable where y·v̂ need not be, and what is too large or too small to square
# is scaled first.
_SMALL, _LARGE = tl.constexpr(2.0**-8), tl.constexpr(2.0**8)
_TOO_LARGE, _DOWN = tl.constexpr(2.0**48), tl.constexpr(2.0**-80)
_TOO_SMALL, _UP = tl.constexpr(2.0**-40), tl.constexpr(2.0**64)

# Triton's interpreter multiplies the bits of bfloat16 numbers as integers: there they are multiplied in float32.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

#: Programs in flight are ordered so that the keys and values they read stay within this many bytes of L2.
_L2_BYTES = 32 << 20


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, accumulator: tl.tensor) -> Any:
    """A · b + accumulator in float32: on tensor cores for 16-bit inputs, without TF32 for float32."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def narrow(x: tl.tensor, DTYPE: tl.constexpr) -> Any:
    """x, in float32, rounded to DTYPE: to the nearest in the interpreter too, which cuts bfloat16 off."""
    if _INTERPRETED and DTYPE.is_bf16():
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def schedule(num_blocks: tl.tensor, num_groups: tl.tensor, group_size: tl.tensor, section: tl.tensor) -> Any:
    """The block, (batch, key/value head) and query head of the group that this program works on.

    Within a section of groups, whose keys and values fit in L2, all heads run their first block before any runs its
    second: the caller counts blocks from the heaviest.
    """
    program = tl.program_id(0)
    section_programs = section * group_size * num_blocks
    first_group = program // section_programs * section
    in_section = program % section_programs
    heads = tl.minimum(section, num_groups - first_group) * group_size
    return in_section // heads, first_group + in_section % heads // group_size, in_section % heads % group_size


@triton.jit
def key_interval(
    row: tl.tensor, first: tl.tensor, last: tl.tensor, num_keys: tl.tensor, window: tl.tensor, IS_CAUSAL: tl.constexpr
) -> Any:
    """[begin, end) of the keys that a row of queries may see; ``window`` None: any distance."""
    if first is not None:
        begin = tl.load(first + row)
        end = tl.load(last + row)
    else:
        begin = row * 0
        end = begin + num_keys
    if IS_CAUSAL:
        end = tl.minimum(end, row + 1)
    if window is not None:
        begin = tl.maximum(begin, row - window + 1)
        if not IS_CAUSAL:
            end = tl.minimum(end, row + window)
    return begin, end


@triton.jit
def parts(
    first_begin: tl.tensor, first_end: tl.tensor, last_begin: tl.tensor, last_end: tl.tensor, BLOCK: tl.constexpr
) -> Any:
    """From the intervals of a program's first and last row: the blocks that need masks, and those that do not.

    Unmasked are ``num_full`` blocks from ``full_start``. Masked are ``num_before`` blocks from ``start`` up to these
    and, of ``num_masked`` in all, the rest after them: see :func:`place`.
    """
    start = first_begin // BLOCK * BLOCK
    full_start = tl.cdiv(tl.minimum(last_begin, last_end), BLOCK) * BLOCK
    full_end = tl.maximum(tl.minimum(first_end, last_end) // BLOCK * BLOCK, full_start)
    num_before = tl.maximum(full_start - start, 0) // BLOCK
    num_after = tl.cdiv(tl.maximum(last_end - full_end, 0), BLOCK)
    return full_start, (full_end - full_start) // BLOCK, start, num_before, num_before + num_after


@triton.jit
def place(index: tl.tensor, spans: tl.tuple, MASKED: tl.constexpr, BLOCK: tl.constexpr) -> Any:
    """Where the masked or unmasked block of this index begins; ``spans`` from :func:`parts`."""
    full_start, num_full, start, num_before, _ = spans
    if MASKED:  # where there are blocks before, they reach up to full_start
        return start + (index + tl.where(index < num_before, 0, num_full)) * BLOCK
    return full_start + index * BLOCK


@triton.jit
def load_rows(
    base: tl.tensor, start: tl.tensor, limit: tl.tensor, token_stride: tl.tensor, dim_stride: tl.tensor,
    BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, MASKED: tl.constexpr,
) -> Any:  # fmt: skip
    """Rows [start, start + BLOCK) of a head as [BLOCK, PADDED_DIM]; 0 past ``limit`` (if MASKED) and HEAD_DIM."""
    row = tl.arange(0, BLOCK)[:, None]
    dim = tl.arange(0, PADDED_DIM)[None, :]
    # 64 bits for the block's place only: the offsets within it stay small.
    pointers = base + tl.cast(start, tl.int64) * token_stride + row * token_stride + dim * dim_stride
    if MASKED:
        return tl.load(pointers, mask=(row < limit - start) & (dim < HEAD_DIM), other=0.0)
    if HEAD_DIM != PADDED_DIM:
        return tl.load(pointers, mask=dim < HEAD_DIM, other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(
    base: tl.tensor, x: tl.tensor, start: tl.tensor, limit: tl.tensor, token_stride: tl.tensor, dim_stride: tl.tensor,
    BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
) -> None:  # fmt: skip
    """The counterpart of :func:`load_rows`, masked."""
    row = tl.arange(0, BLOCK)[:, None]
    dim = tl.arange(0, PADDED_DIM)[None, :]
    pointers = base + tl.cast(start, tl.int64) * token_stride + row * token_stride + dim * dim_stride
    tl.store(pointers, narrow(x, base.dtype.element_ty), mask=(row < limit - start) & (dim < HEAD_DIM))


@triton.jit
def _attend(
    accumulator: tl.tensor, total: tl.tensor, largest: tl.tensor, q: tl.tensor, factor: tl.tensor, key: tl.tensor,
    value: tl.tensor, value_scale: tl.tensor, key_token_stride: tl.tensor, key_dim_stride: tl.tensor,
    value_token_stride: tl.tensor, value_dim_stride: tl.tensor, value_scale_stride: tl.tensor, spans: tl.tuple,
    begin: tl.tensor, end: tl.tensor, num_keys: tl.tensor, HAS_BEGIN: tl.constexpr, MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
) -> Any:  # fmt: skip
    """The MASKED or the unmasked blocks of keys, of which the rows see [begin, end)."""
    column = tl.arange(0, BLOCK_N)
    for index in range(0, spans[4] if MASKED else spans[1]):
        position = place(index, spans, MASKED, BLOCK_N)
        k = load_rows(key, position, num_keys, key_token_stride, key_dim_stride, BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED)
        scores = dot(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32))
        if MASKED:
            visible = (position + column)[None, :] < end[:, None]
            if HAS_BEGIN:
                visible &= (position + column)[None, :] >= begin[:, None]
            scores = tl.where(visible, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1) * factor)
        shift = new_largest
        if MASKED:  # a row that has seen nothing yet
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores * factor[:, None] - shift[:, None])
        correction = tl.exp2(largest - shift)
        total = total * correction + tl.sum(weights, axis=1)
        largest = new_largest
        if value_scale is not None:
            scale_pointers = (
                value_scale + tl.cast(position, tl.int64) * value_scale_stride + column * value_scale_stride
            )
            if MASKED:
                column_scale = tl.load(scale_pointers, mask=column < num_keys - position, other=0.0)
            else:
                column_scale = tl.load(scale_pointers)
            weights = weights * column_scale[None, :]
        v = load_rows(
            value, position, num_keys, value_token_stride, value_dim_stride, BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED
        )
        accumulator = dot(narrow(weights, v.dtype), v, accumulator * correction[:, None])
    return accumulator, total, largest


@triton.jit
def _exclude(small_y: tl.tensor, v: tl.tensor, alpha: tl.tensor, eps: tl.tensor) -> Any:
    """y − α (y·v̂) v̂ [rows, D] and y·v̂ [rows, 1] of 2⁻⁸ y in float32, v [rows, D] and alpha [rows, 1] or None for 1.

    As :func:`exsel.kernels.triton.project.exclude_rows`, with few registers: v̂ and 2⁻⁸ y instead of 2⁻⁸ v̂, 2⁸ v̂ and y.
    Scalars of rows as [rows, 1], and the choice of the next line, keep everything in the layout that y has, where
    Triton else moves v̂ and every product to another one.
    """
    v = tl.where(small_y != small_y, small_y, v.to(tl.float32))
    largest = tl.max(tl.abs(v), axis=1, keep_dims=True)
    rescale = tl.where(largest > _TOO_LARGE, _DOWN, tl.where(largest < _TOO_SMALL, _UP, 1.0))
    unit = v * rescale
    norm = tl.sqrt_rn(tl.sum(unit * unit, axis=1, keep_dims=True))
    floor = eps * rescale
    unit = unit * (1 / tl.maximum(norm, floor))
    c = tl.sum(small_y * unit, axis=1, keep_dims=True)
    small_y -= unit * c
    # Once more, for what rounding left of v̂.
    left = tl.sum(small_y * unit, axis=1, keep_dims=True) * (2 - tl.sum(unit * unit, axis=1, keep_dims=True))
    left = tl.where(norm > floor, left, 0.0)
    along = (c + left) * _LARGE
    if alpha is not None:
        left = alpha * left - (1 - alpha) * c
    return (small_y - unit * left) * _LARGE, along


@triton.jit(do_not_specialize=["num_groups", "num_kv_heads", "section"])
def attention_forward_kernel(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, strength: tl.tensor, query_scale: tl.tensor,
    value_scale: tl.tensor, first: tl.tensor, last: tl.tensor, z: tl.tensor, logsumexp: tl.tensor, along: tl.tensor,
    query_strides: tl.tuple, key_strides: tl.tuple, value_strides: tl.tuple, z_strides: tl.tuple,
    strength_strides: tl.tuple, query_scale_strides: tl.tuple, value_scale_strides: tl.tuple, num_queries: tl.tensor,
    num_keys: tl.tensor, num_groups: tl.tensor, num_kv_heads: tl.tensor, group_size: tl.tensor, section: tl.tensor,
    window: tl.tensor, scale: tl.tensor, eps: tl.tensor, IS_CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_M queries of one head. ``along`` None: plain attention."""
    num_blocks = tl.cdiv(num_queries, BLOCK_M)
    block, group, in_group = schedule(num_blocks, num_groups, group_size, section)
    if IS_CAUSAL:
        block = num_blocks - 1 - block
    start = block * BLOCK_M
    batch = (group // num_kv_heads).to(tl.int64)
    kv_head = (group % num_kv_heads).to(tl.int64)
    head = kv_head * group_size + in_group
    per_row = (group.to(tl.int64) * group_size + in_group) * num_queries + start

    row = tl.arange(0, BLOCK_M)
    has_row = row < num_queries - start
    query += batch * query_strides[0] + head * query_strides[1]
    key += batch * key_strides[0] + kv_head * key_strides[1]
    value += batch * value_strides[0] + kv_head * value_strides[1]
    q = load_rows(
        query, start, num_queries, query_strides[2], query_strides[3], BLOCK_M, HEAD_DIM, PADDED_DIM, MASKED=True
    )
    factor = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2_E
    if query_scale is not None:
        query_scale += batch * query_scale_strides[0] + head * query_scale_strides[1]
        factor *= tl.load(query_scale + (start + row).to(tl.int64) * query_scale_strides[2], mask=has_row, other=0.0)
        # With the sign moved to q the largest product of a row is its largest score; not 0, of which −inf makes NaN.
        q = (q.to(tl.float32) * tl.where(factor < 0, -1.0, 1.0)[:, None]).to(q.dtype)
        factor = tl.maximum(tl.abs(factor), 1e-37)
    if value_scale is not None:
        value_scale += batch * value_scale_strides[0] + kv_head * value_scale_strides[1]

    last_row = tl.minimum(start + BLOCK_M, num_queries) - 1
    begin, end = key_interval(tl.minimum(start + row, last_row), first, last, num_keys, window, IS_CAUSAL)
    first_begin, first_end = key_interval(start, first, last, num_keys, window, IS_CAUSAL)
    last_begin, last_end = key_interval(last_row, first, last, num_keys, window, IS_CAUSAL)
    spans = parts(first_begin, first_end, last_begin, last_end, BLOCK_N)

    accumulator = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    HAS_BEGIN: tl.constexpr = first is not None or window is not None
    for MASKED in tl.static_range(2):
        accumulator, total, largest = _attend(
            accumulator,
            total,
            largest,
            q,
            factor,
            key,
            value,
            value_scale,
            key_strides[2],
            key_strides[3],
            value_strides[2],
            value_strides[3],
            value_scale_strides[2],
            spans,
            begin,
            end,
            num_keys,
            HAS_BEGIN,
            MASKED == 1,
            HEAD_DIM,
            PADDED_DIM,
            BLOCK_N,
        )

    sees_any = total > 0
    total = tl.where(sees_any, total, 1.0)
    natural = (largest + tl.log2(total)) * _LN_2
    tl.store(logsumexp + per_row + row, tl.where(sees_any, natural, float("-inf")), mask=has_row)
    if along is None:
        y = accumulator * (1 / total)[:, None]
    else:
        v = load_rows(
            value, start, num_keys, value_strides[2], value_strides[3], BLOCK_M, HEAD_DIM, PADDED_DIM, MASKED=True
        )
        alpha = None
        if strength is not None:
            strength += batch * strength_strides[0] + head * strength_strides[1]
            alpha = tl.load(strength + (start + row).to(tl.int64) * strength_strides[2], mask=has_row, other=0.0)
            alpha = alpha[:, None]
        y, c = _exclude(accumulator * (1 / total * _SMALL)[:, None], v, alpha, eps)
        tl.store(along + per_row + row, tl.reshape(c, [BLOCK_M]), mask=has_row)
    z += batch * z_strides[0] + head * z_strides[1]
    store_rows(z, y, start, num_queries, z_strides[2], z_strides[3], BLOCK_M, HEAD_DIM, PADDED_DIM)


def sequence_bounds(cu_seqlens: Tensor | None, num_tokens: int) -> tuple[Tensor | None, Tensor | None]:
    """Where each token's own sequence begins and ends, int32 [T] each; None and None without ``cu_seqlens``.

    Tokens before the first or past the last sequence get an empty interval.
    """
    if cu_seqlens is None:
        return None, None
    tokens = torch.arange(num_tokens, dtype=torch.int32, device=cu_seqlens.device)
    started = torch.searchsorted(cu_seqlens, tokens, right=True, out_int32=True)
    first = torch.cat([cu_seqlens[:1], cu_seqlens]).to(torch.int32)
    last = torch.cat([cu_seqlens, cu_seqlens[-1:]]).to(torch.int32)
    return first[started], last[started]


def effective_window(window: int | None, num_queries: int, num_keys: int) -> int | None:
    """None for a window that hides nothing."""
    return None if window is None or window >= max(num_queries, num_keys) else window


def token_strides(x: Tensor | None) -> tuple[int, ...]:
    """The strides of a per-token tensor; zeros if it is not given."""
    return (0, 0, 0) if x is None else x.stride()


def section_of(num_tokens: int, head_dim: int, dtype: torch.dtype) -> int:
    """How many key/value heads' pairs of [tokens, head_dim] fit in L2: see :func:`schedule`."""
    return max(1, _L2_BYTES // (2 * num_tokens * head_dim * dtype.itemsize))


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    exclusive: bool,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    cu_seqlens: Tensor | None,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """z = y − α (y·v̂) v̂ with y = softmax(τ_q q kᵀ · scale) (τ_v v), and v̂ of the token's own, unscaled value.

    Args:
        query: [B, H, T, D] with any strides, as all that follow; float32, bfloat16 or float16, D <= 256.
        key, value: [B, Hkv, S, D], Hkv a divisor of H.
        exclusive: project; needs S = T. Without it z = y.
        strength: α [B, H, T] in float32; None: 1.
        query_scale, value_scale: τ_q [B, H, T] and τ_v [B, Hkv, S] in float32; None: 1.
        cu_seqlens: int32 [N + 1], where packed sequences begin and end: a token sees its own only. Needs S = T.
        is_causal: key j is seen from query i >= j.
        window: key j is seen from query i if |i − j| < window.
        scale: what the products are multiplied by.
        eps: least norm of v that is divided by.
        config: None: chosen by head dimension, dtype and device.

    Returns:
        z [B, H, T, D], in memory [B, T, H, D]; the natural logarithm of each row's softmax denominator, float32
        [B, H, T]; c = y·v̂, float32 [B, H, T], or None if not exclusive. A row that sees nothing is 0, −inf and 0.
    """
    batch, num_heads, num_queries, head_dim = query.shape
    num_kv_heads, num_keys = key.shape[1:3]
    z = query.new_empty(batch, num_queries, num_heads, head_dim).transpose(1, 2)
    logsumexp = query.new_empty(batch, num_heads, num_queries, dtype=torch.float32)
    along = torch.empty_like(logsumexp) if exclusive else None
    if scale <= 0 and query_scale is None:  # only query_scale may have any sign in the kernel
        query_scale, scale = logsumexp.new_full((1, 1, 1), scale).expand(batch, num_heads, num_queries), 1.0
    first, last = sequence_bounds(cu_seqlens, num_queries)
    window = effective_window(window, num_queries, num_keys)
    config = config or choose_config("attention_forward", head_dim, query.dtype, query.device)
    num_programs = batch * num_heads * triton.cdiv(num_queries, config["BLOCK_M"])
    with torch.cuda.device_of(query):
        attention_forward_kernel[(num_programs,)](
            query, key, value, strength, query_scale, value_scale, first, last, z, logsumexp, along,
            query.stride(), key.stride(), value.stride(), z.stride(),
            token_strides(strength), token_strides(query_scale), token_strides(value_scale),
            num_queries, num_keys, batch * num_kv_heads, num_kv_heads, num_heads // num_kv_heads,
            section_of(num_keys, head_dim, key.dtype), window, scale, eps,
            IS_CAUSAL=is_causal, HEAD_DIM=head_dim, PADDED_DIM=padded(head_dim),
            **config, enable_fp_fusion=True,
        )  # fmt: skip
    return z, logsumexp, along
