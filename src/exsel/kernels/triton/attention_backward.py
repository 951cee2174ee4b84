"""The gradients of attention with the projection as its epilogue, in three launches.

With P the weights, dz the incoming gradient and δ = rowsum(dy ∘ y), where y = z + α c v̂ for every strength:

1. prologue: one pass over dz, z and v writes dy, δ, dα and the part of dv that comes from v̂;
2. key and value: one program a block of keys of one key/value head runs over the queries that see it, of every query
   head of the group, and so sums dk, dv and dτ_v without atomics: same bits on every run;
3. query: one program a block of queries runs over its keys for dq and dτ_q.

Floor: 5 products of T S D each a head, and 2 more because (2) and (3) both rebuild the weights, half of it when causal.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from exsel.kernels.triton.attention import (
    LOG2_E,
    dot,
    effective_window,
    key_interval,
    load_rows,
    narrow,
    parts,
    place,
    schedule,
    section_of,
    sequence_bounds,
    store_rows,
    token_strides,
)
from exsel.kernels.triton.project import default_config, direction
from exsel.kernels.triton.tuning import Config, choose_config, padded

_SMALL = tl.constexpr(2.0**-8)
_LARGE_OVER_SMALL = tl.constexpr(2.0**16)

#: float32 numbers of each tensor that one thread of the prologue holds: v̂, its gradient, dz and z stay in registers.
_PROLOGUE_NUMBERS = 16


@triton.jit(do_not_specialize=["num_kv_heads"])
def attention_backward_prologue_kernel(
    dz: tl.tensor, z: tl.tensor, value: tl.tensor, strength: tl.tensor, along: tl.tensor, dy: tl.tensor,
    dv: tl.tensor, delta: tl.tensor, dstrength: tl.tensor, dz_strides: tl.tuple, z_strides: tl.tuple,
    value_strides: tl.tuple, strength_strides: tl.tuple, dy_strides: tl.tuple, dv_strides: tl.tuple,
    num_tokens: tl.tensor, num_kv_heads: tl.tensor, group_size: tl.tensor, eps: tl.tensor, HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr, BLOCK_T: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_T tokens of one key/value head. ``along`` None: plain attention, of which only δ is written.

    With s = dz·v̂ and c = y·v̂: dy = dz − α s v̂;  dα = −c s;  dv = −Σ (α/‖v‖)(c (dz − s v̂) + s (y − c v̂)).
    """
    num_blocks = tl.cdiv(num_tokens, BLOCK_T)
    group = tl.program_id(0) // num_blocks
    start = tl.program_id(0) % num_blocks * BLOCK_T
    batch = (group // num_kv_heads).to(tl.int64)
    kv_head = (group % num_kv_heads).to(tl.int64)
    row = tl.arange(0, BLOCK_T)
    has_row = row < num_tokens - start
    if along is not None:
        value += batch * value_strides[0] + kv_head * value_strides[1]
        v = load_rows(
            value, start, num_tokens, value_strides[2], value_strides[3], BLOCK_T, HEAD_DIM, PADDED_DIM, MASKED=True
        )
        # 2⁻⁸ v̂ and 2⁻⁸ ‖v‖: c and s below are 2⁻⁸ of themselves.
        unit, length, is_unit = direction(v.to(tl.float32), eps)
        own = tl.zeros([BLOCK_T, PADDED_DIM], tl.float32)
    for member in range(group_size):
        head = kv_head * group_size + member
        per_row = (group.to(tl.int64) * group_size + member) * num_tokens + start + row
        g = load_rows(
            dz + batch * dz_strides[0] + head * dz_strides[1],
            start, num_tokens, dz_strides[2], dz_strides[3], BLOCK_T, HEAD_DIM, PADDED_DIM, MASKED=True,
        ).to(tl.float32)  # fmt: skip
        x = load_rows(
            z + batch * z_strides[0] + head * z_strides[1],
            start, num_tokens, z_strides[2], z_strides[3], BLOCK_T, HEAD_DIM, PADDED_DIM, MASKED=True,
        ).to(tl.float32)  # fmt: skip
        if along is None:
            tl.store(delta + per_row, tl.sum(g * x, axis=1), mask=has_row)
        else:
            c = tl.load(along + per_row, mask=has_row, other=0.0) * _SMALL
            s = tl.sum(g * unit, axis=1)
            large = unit * _LARGE_OVER_SMALL
            alpha = tl.full([BLOCK_T], 1.0, tl.float32)
            if strength is not None:
                strengths = strength + batch * strength_strides[0] + head * strength_strides[1]
                alpha = tl.load(strengths + (start + row).to(tl.int64) * strength_strides[2], mask=has_row, other=0.0)
                tl.store(dstrength + per_row, -(c * s) * _LARGE_OVER_SMALL, mask=has_row)
            rounded = narrow(g - large * (alpha * s)[:, None], dy.dtype.element_ty).to(tl.float32)
            store_rows(
                dy + batch * dy_strides[0] + head * dy_strides[1], rounded,
                start, num_tokens, dy_strides[2], dy_strides[3], BLOCK_T, HEAD_DIM, PADDED_DIM,
            )  # fmt: skip
            # dy·y of the dy that the other launches read: in a row of one key dP − δ is 0 (see kernels/sdpa.py).
            rest = tl.sum(rounded * unit, axis=1) * (alpha * c) * _LARGE_OVER_SMALL
            tl.store(delta + per_row, tl.sum(rounded * x, axis=1) + rest, mask=has_row)
            # Below eps the norm is a constant and its derivative, the terms in v̂, is absent: is_unit is 0.
            own -= (g - large * (s * is_unit)[:, None]) * (alpha * c / length)[:, None]
            own -= (x + large * (c * (alpha - is_unit))[:, None]) * (alpha * s / length)[:, None]
    if along is not None:
        dv += batch * dv_strides[0] + kv_head * dv_strides[1]
        store_rows(dv, own, start, num_tokens, dv_strides[2], dv_strides[3], BLOCK_T, HEAD_DIM, PADDED_DIM)


@triton.jit
def _query_interval(
    column: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    num_queries: tl.tensor,
    window: tl.tensor,
    IS_CAUSAL: tl.constexpr,
) -> Any:
    """[begin, end) of the queries that see a key: the counterpart of :func:`key_interval`."""
    if first is not None:
        begin = tl.load(first + column)
        end = tl.load(last + column)
    else:
        begin = column * 0
        end = begin + num_queries
    if IS_CAUSAL:
        begin = tl.maximum(begin, column)
    if window is not None:
        end = tl.minimum(end, column + window)
        if not IS_CAUSAL:
            begin = tl.maximum(begin, column - window + 1)
    return begin, end


@triton.jit
def _gather_queries(
    dk: tl.tensor, weighted: tl.tensor, k: tl.tensor, v: tl.tensor, column_scale: tl.tensor, query: tl.tensor,
    dy: tl.tensor, query_scale: tl.tensor, logsumexp: tl.tensor, delta: tl.tensor, query_strides: tl.tuple,
    dy_strides: tl.tuple, query_scale_strides: tl.tuple, scale: tl.tensor, spans: tl.tuple, begin: tl.tensor,
    end: tl.tensor, num_queries: tl.tensor, group_size: tl.tensor, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
) -> Any:  # fmt: skip
    """Add the MASKED or the unmasked blocks of queries of a group's heads, of which [begin, end) see the keys."""
    row = tl.arange(0, BLOCK_M)
    num_blocks = spans[4] if MASKED else spans[1]
    # One loop over heads and blocks: of two, the outer one would keep what it leaves unchanged in registers.
    for index in range(0, group_size * num_blocks):
        member = tl.cast(index // num_blocks, tl.int64)
        position = place(index % num_blocks, spans, MASKED, BLOCK_M)
        q = load_rows(
            query + member * query_strides[1], position, num_queries, query_strides[2], query_strides[3],
            BLOCK_M, HEAD_DIM, PADDED_DIM, MASKED,
        )  # fmt: skip
        g = load_rows(
            dy + member * dy_strides[1], position, num_queries, dy_strides[2], dy_strides[3],
            BLOCK_M, HEAD_DIM, PADDED_DIM, MASKED,
        )  # fmt: skip
        has_row = row < num_queries - position if MASKED else None
        other: tl.constexpr = 0.0 if MASKED else None
        per_row = member * num_queries + position
        row_logsumexp = tl.load(logsumexp + per_row + row, mask=has_row, other=other)
        row_delta = tl.load(delta + per_row + row, mask=has_row, other=other)
        factor = tl.full([BLOCK_M], 1.0, tl.float32)
        if query_scale is not None:
            scales = (
                query_scale + member * query_scale_strides[1] + tl.cast(position, tl.int64) * query_scale_strides[2]
            )
            factor = tl.load(scales + row * query_scale_strides[2], mask=has_row, other=other)
        scores = dot(k, tl.trans(q), tl.zeros([k.shape[0], BLOCK_M], tl.float32))
        if query_scale is not None:
            scores = scores * factor[None, :]
        weights = tl.exp2(scores * (scale * LOG2_E) - (row_logsumexp * LOG2_E)[None, :])
        if MASKED:
            visible = ((position + row)[None, :] >= begin[:, None]) & ((position + row)[None, :] < end[:, None])
            weights = tl.where(visible, weights, 0.0)
        weighted = dot(narrow(weights, g.dtype), g, weighted)
        dscores = dot(v, tl.trans(g), tl.zeros([k.shape[0], BLOCK_M], tl.float32))
        if column_scale is not None:
            dscores = dscores * column_scale[:, None]
        dscores = weights * (dscores - row_delta[None, :])
        if query_scale is not None:
            dscores = dscores * factor[None, :]
        dk = dot(narrow(dscores, q.dtype), q, dk)
    return dk, weighted


@triton.jit(do_not_specialize=["num_groups", "num_kv_heads", "section"])
def attention_backward_key_value_kernel(
    dy: tl.tensor, query: tl.tensor, key: tl.tensor, value: tl.tensor, query_scale: tl.tensor, value_scale: tl.tensor,
    first: tl.tensor, last: tl.tensor, logsumexp: tl.tensor, delta: tl.tensor, dk: tl.tensor, dv: tl.tensor,
    dvalue_scale: tl.tensor, dy_strides: tl.tuple, query_strides: tl.tuple, key_strides: tl.tuple,
    value_strides: tl.tuple, query_scale_strides: tl.tuple, value_scale_strides: tl.tuple, dk_strides: tl.tuple,
    dv_strides: tl.tuple, num_queries: tl.tensor, num_keys: tl.tensor, num_groups: tl.tensor, num_kv_heads: tl.tensor,
    group_size: tl.tensor, section: tl.tensor, window: tl.tensor, scale: tl.tensor, ADD_TO_DV: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_N keys and values of one key/value head. ADD_TO_DV: to what the prologue has left there."""
    block, group, _ = schedule(tl.cdiv(num_keys, BLOCK_N), num_groups, 1, section)
    start = block * BLOCK_N
    batch = (group // num_kv_heads).to(tl.int64)
    kv_head = (group % num_kv_heads).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    has_column = column < num_keys - start
    key += batch * key_strides[0] + kv_head * key_strides[1]
    value += batch * value_strides[0] + kv_head * value_strides[1]
    k = load_rows(key, start, num_keys, key_strides[2], key_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED=True)
    v = load_rows(
        value, start, num_keys, value_strides[2], value_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED=True
    )
    column_scale = None
    if value_scale is not None:
        value_scale += batch * value_scale_strides[0] + kv_head * value_scale_strides[1]
        column_scale = tl.load(
            value_scale + (start + column).to(tl.int64) * value_scale_strides[2], mask=has_column, other=0.0
        )

    last_column = tl.minimum(start + BLOCK_N, num_keys) - 1
    columns = tl.minimum(start + column, last_column)
    begin, end = _query_interval(columns, first, last, num_queries, window, IS_CAUSAL)
    first_begin, first_end = _query_interval(start, first, last, num_queries, window, IS_CAUSAL)
    last_begin, last_end = _query_interval(last_column, first, last, num_queries, window, IS_CAUSAL)
    spans = parts(first_begin, first_end, last_begin, last_end, BLOCK_M)

    accumulated_dk = tl.zeros([BLOCK_N, PADDED_DIM], tl.float32)
    weighted = tl.zeros([BLOCK_N, PADDED_DIM], tl.float32)
    first_head = kv_head * group_size
    per_row = group.to(tl.int64) * group_size * num_queries
    if query_scale is not None:
        query_scale += batch * query_scale_strides[0] + first_head * query_scale_strides[1]
    for MASKED in tl.static_range(2):
        accumulated_dk, weighted = _gather_queries(
            accumulated_dk,
            weighted,
            k,
            v,
            column_scale,
            query + batch * query_strides[0] + first_head * query_strides[1],
            dy + batch * dy_strides[0] + first_head * dy_strides[1],
            query_scale,
            logsumexp + per_row,
            delta + per_row,
            query_strides,
            dy_strides,
            query_scale_strides,
            scale,
            spans,
            begin,
            end,
            num_queries,
            group_size,
            MASKED == 1,
            HEAD_DIM,
            PADDED_DIM,
            BLOCK_M,
        )

    dk += batch * dk_strides[0] + kv_head * dk_strides[1]
    store_rows(dk, accumulated_dk * scale, start, num_keys, dk_strides[2], dk_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM)
    if column_scale is not None:
        # Read again, after a store that keeps the compiler from holding the first copy in registers until here; the 0,
        # which it cannot see through, keeps it from holding the pointers.
        v = load_rows(
            value + tl.minimum(spans[4], 0),
            start,
            num_keys,
            value_strides[2],
            value_strides[3],
            BLOCK_N,
            HEAD_DIM,
            PADDED_DIM,
            MASKED=True,
        )
        summed = tl.sum(weighted * v.to(tl.float32), axis=1, keep_dims=True)
        dvalue_scale += (batch * num_kv_heads + kv_head) * num_keys + start + column
        tl.store(dvalue_scale, tl.reshape(summed, [BLOCK_N]), mask=has_column)
        weighted = weighted * column_scale[:, None]
    dv += batch * dv_strides[0] + kv_head * dv_strides[1]
    if ADD_TO_DV:
        weighted += load_rows(
            dv, start, num_keys, dv_strides[2], dv_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED=True
        )
    store_rows(dv, weighted, start, num_keys, dv_strides[2], dv_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM)


@triton.jit
def _gather_keys(
    dq: tl.tensor, q: tl.tensor, g: tl.tensor, factor: tl.tensor, shift: tl.tensor, row_delta: tl.tensor,
    key: tl.tensor, value: tl.tensor, value_scale: tl.tensor, key_strides: tl.tuple, value_strides: tl.tuple,
    value_scale_stride: tl.tensor, spans: tl.tuple, begin: tl.tensor, end: tl.tensor,
    num_keys: tl.tensor, HAS_BEGIN: tl.constexpr, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
) -> Any:  # fmt: skip
    """Add the MASKED or the unmasked blocks of keys, of which the rows see [begin, end)."""
    column = tl.arange(0, BLOCK_N)
    for index in range(0, spans[4] if MASKED else spans[1]):
        position = place(index, spans, MASKED, BLOCK_N)
        k = load_rows(key, position, num_keys, key_strides[2], key_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED)
        v = load_rows(
            value, position, num_keys, value_strides[2], value_strides[3], BLOCK_N, HEAD_DIM, PADDED_DIM, MASKED
        )
        scores = dot(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32))
        weights = tl.exp2(scores * factor[:, None] - shift[:, None])
        if MASKED:
            visible = (position + column)[None, :] < end[:, None]
            if HAS_BEGIN:
                visible &= (position + column)[None, :] >= begin[:, None]
            weights = tl.where(visible, weights, 0.0)
        dscores = dot(g, tl.trans(v), tl.zeros([q.shape[0], BLOCK_N], tl.float32))
        if value_scale is not None:
            scale_pointers = value_scale + (tl.cast(position, tl.int64) + column) * value_scale_stride
            if MASKED:
                column_scale = tl.load(scale_pointers, mask=column < num_keys - position, other=0.0)
            else:
                column_scale = tl.load(scale_pointers)
            dscores = dscores * column_scale[None, :]
        dscores = weights * (dscores - row_delta[:, None])
        dq = dot(narrow(dscores, k.dtype), k, dq)
    return dq


@triton.jit(do_not_specialize=["num_groups", "num_kv_heads", "section"])
def attention_backward_query_kernel(
    dy: tl.tensor, query: tl.tensor, key: tl.tensor, value: tl.tensor, query_scale: tl.tensor, value_scale: tl.tensor,
    first: tl.tensor, last: tl.tensor, logsumexp: tl.tensor, delta: tl.tensor, dq: tl.tensor, dquery_scale: tl.tensor,
    dy_strides: tl.tuple, query_strides: tl.tuple, key_strides: tl.tuple, value_strides: tl.tuple,
    query_scale_strides: tl.tuple, value_scale_strides: tl.tuple, dq_strides: tl.tuple, num_queries: tl.tensor,
    num_keys: tl.tensor, num_groups: tl.tensor, num_kv_heads: tl.tensor, group_size: tl.tensor, section: tl.tensor,
    window: tl.tensor, scale: tl.tensor, IS_CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """BLOCK_M queries of one head."""
    num_blocks = tl.cdiv(num_queries, BLOCK_M)
    block, group, in_group = schedule(num_blocks, num_groups, group_size, section)
    if IS_CAUSAL:
        block = num_blocks - 1 - block
    start = block * BLOCK_M
    batch = (group // num_kv_heads).to(tl.int64)
    kv_head = (group % num_kv_heads).to(tl.int64)
    head = kv_head * group_size + in_group
    row = tl.arange(0, BLOCK_M)
    has_row = row < num_queries - start
    per_row = (group.to(tl.int64) * group_size + in_group) * num_queries + start + row
    query += batch * query_strides[0] + head * query_strides[1]
    dy += batch * dy_strides[0] + head * dy_strides[1]
    q = load_rows(
        query, start, num_queries, query_strides[2], query_strides[3], BLOCK_M, HEAD_DIM, PADDED_DIM, MASKED=True
    )
    g = load_rows(dy, start, num_queries, dy_strides[2], dy_strides[3], BLOCK_M, HEAD_DIM, PADDED_DIM, MASKED=True)
    shift = tl.load(logsumexp + per_row, mask=has_row, other=0.0) * LOG2_E
    row_delta = tl.load(delta + per_row, mask=has_row, other=0.0)
    factor = tl.zeros([BLOCK_M], tl.float32) + scale
    if query_scale is not None:
        query_scale += batch * query_scale_strides[0] + head * query_scale_strides[1]
        factor *= tl.load(query_scale + (start + row).to(tl.int64) * query_scale_strides[2], mask=has_row, other=0.0)
    if value_scale is not None:
        value_scale += batch * value_scale_strides[0] + kv_head * value_scale_strides[1]

    last_row = tl.minimum(start + BLOCK_M, num_queries) - 1
    begin, end = key_interval(tl.minimum(start + row, last_row), first, last, num_keys, window, IS_CAUSAL)
    first_begin, first_end = key_interval(start, first, last, num_keys, window, IS_CAUSAL)
    last_begin, last_end = key_interval(last_row, first, last, num_keys, window, IS_CAUSAL)
    spans = parts(first_begin, first_end, last_begin, last_end, BLOCK_N)

    accumulator = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)
    HAS_BEGIN: tl.constexpr = first is not None or window is not None
    for MASKED in tl.static_range(2):
        accumulator = _gather_keys(
            accumulator,
            q,
            g,
            factor * LOG2_E,
            shift,
            row_delta,
            key + batch * key_strides[0] + kv_head * key_strides[1],
            value + batch * value_strides[0] + kv_head * value_strides[1],
            value_scale,
            key_strides,
            value_strides,
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

    dq += batch * dq_strides[0] + head * dq_strides[1]
    store_rows(
        dq,
        accumulator * factor[:, None],
        start, num_queries, dq_strides[2], dq_strides[3], BLOCK_M, HEAD_DIM, PADDED_DIM,
    )  # fmt: skip
    if query_scale is not None:
        # Read again, as v above.
        q = load_rows(
            query + tl.minimum(spans[4], 0),
            start,
            num_queries,
            query_strides[2],
            query_strides[3],
            BLOCK_M,
            HEAD_DIM,
            PADDED_DIM,
            MASKED=True,
        )
        summed = tl.sum(accumulator * q.to(tl.float32), axis=1, keep_dims=True) * scale
        tl.store(dquery_scale + per_row, tl.reshape(summed, [BLOCK_M]), mask=has_row)


def attention_backward(
    dz: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    z: Tensor,
    logsumexp: Tensor,
    along: Tensor | None,
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
    prologue_config: Config | None = None,
    key_value_config: Config | None = None,
    query_config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of :func:`exsel.kernels.triton.attention.attention_forward`.

    Args:
        dz: [B, H, T, D] with any strides.
        z, logsumexp, along: what the forward returned.
        prologue_config, key_value_config, query_config: of the three launches; None: chosen as in the forward.

    The rest is as the forward was given it.

    Returns:
        dq, dk, dv in the inputs' dtype and order in memory; dα [B, H, T], dτ_q [B, H, T] and dτ_v [B, Hkv, S] in
        float32, None where the forward got None.
    """
    batch, num_heads, num_queries, head_dim = query.shape
    num_kv_heads, num_keys = key.shape[1:3]
    group_size, num_groups = num_heads // num_kv_heads, batch * num_kv_heads
    dq, dk, dv = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    delta = torch.empty_like(logsumexp)
    dstrength = None if strength is None else torch.empty_like(logsumexp)
    dquery_scale = None if query_scale is None else torch.empty_like(logsumexp)
    dvalue_scale = None if value_scale is None else logsumexp.new_empty(batch, num_kv_heads, num_keys)
    dy = torch.empty(query.shape, dtype=query.dtype, device=query.device) if exclusive else dz
    first, last = sequence_bounds(cu_seqlens, num_queries)
    window = effective_window(window, num_queries, num_keys)
    chosen = (head_dim, query.dtype, query.device)
    prologue_config = prologue_config or default_config(head_dim, _PROLOGUE_NUMBERS)
    key_value_config = key_value_config or choose_config("attention_backward_key_value", *chosen)
    query_config = query_config or choose_config("attention_backward_query", *chosen)
    dims = {"HEAD_DIM": head_dim, "PADDED_DIM": padded(head_dim)}
    with torch.cuda.device_of(query):
        row_programs = num_groups * triton.cdiv(num_queries, prologue_config["BLOCK_T"])
        attention_backward_prologue_kernel[(row_programs,)](
            dz, z, value, strength, along, dy, dv, delta, dstrength,
            dz.stride(), z.stride(), value.stride(), token_strides(strength), dy.stride(), dv.stride(),
            num_queries, num_kv_heads, group_size, eps,
            **dims, **prologue_config, enable_fp_fusion=True,
        )  # fmt: skip
        key_programs = num_groups * triton.cdiv(num_keys, key_value_config["BLOCK_N"])
        attention_backward_key_value_kernel[(key_programs,)](
            dy, query, key, value, query_scale, value_scale, first, last, logsumexp, delta, dk, dv, dvalue_scale,
            dy.stride(), query.stride(), key.stride(), value.stride(), token_strides(query_scale),
            token_strides(value_scale), dk.stride(), dv.stride(),
            num_queries, num_keys, num_groups, num_kv_heads, group_size,
            section_of(num_queries * group_size, head_dim, query.dtype), window, scale,
            ADD_TO_DV=exclusive, IS_CAUSAL=is_causal, **dims, **key_value_config, enable_fp_fusion=True,
        )  # fmt: skip
        query_programs = batch * num_heads * triton.cdiv(num_queries, query_config["BLOCK_M"])
        attention_backward_query_kernel[(query_programs,)](
            dy, query, key, value, query_scale, value_scale, first, last, logsumexp, delta, dq, dquery_scale,
            dy.stride(), query.stride(), key.stride(), value.stride(), token_strides(query_scale),
            token_strides(value_scale), dq.stride(),
            num_queries, num_keys, num_groups, num_kv_heads, group_size,
            section_of(num_keys, head_dim, key.dtype), window, scale,
            IS_CAUSAL=is_causal, **dims, **query_config, enable_fp_fusion=True,
        )  # fmt: skip
    return dq, dk, dv, dstrength, dquery_scale, dvalue_scale
