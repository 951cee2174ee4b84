"""One or a few new queries on a key/value cache, with or without the projection: split-KV.

A decoding step has few rows to keep a GPU busy with, so the keys are split: each program runs the queries of one
key/value head over one chunk of the keys, and a second kernel merges the chunks, projects and writes. The keys and
values are read once, for all the query heads of their group. With one chunk the first kernel does all of it.

Floor: read the visible keys and values once. The partial results are written and read besides: D + 2 float32 a row
and chunk, against 2 D elements a key.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from exsel.kernels.triton.attention import LOG2_E, dot
from exsel.kernels.triton.project import direction, exclude_rows
from exsel.kernels.triton.tuning import Config, choose_config, padded

#: Programs that share a multiprocessor, by shared memory and registers of the defaults.
_PROGRAMS_A_MULTIPROCESSOR = 2

#: More chunks than this cost the merging more than they give.
_MOST_SPLITS = 128


@triton.jit
def _exp(x: tl.tensor) -> tl.tensor:
    """exp x for x <= 0. A mask of the least float cannot overflow in the change of base, and a NaN stays one."""
    return tl.exp2(tl.where(x < -200.0, -200.0, x) * LOG2_E)


# A cache that grows would ask for another specialization at every 16th step.
@triton.jit(do_not_specialize=["stride_mb", "stride_mh", "stride_mt", "num_keys"])
def decode_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    own_value: tl.tensor,
    strength: tl.tensor,
    query_scale: tl.tensor,
    value_scale: tl.tensor,
    attn_mask: tl.tensor,
    z: tl.tensor,
    partial: tl.tensor,
    statistics: tl.tensor,
    stride_qb: tl.tensor,
    stride_qh: tl.tensor,
    stride_qt: tl.tensor,
    stride_qd: tl.tensor,
    stride_kb: tl.tensor,
    stride_kh: tl.tensor,
    stride_ks: tl.tensor,
    stride_kd: tl.tensor,
    stride_vb: tl.tensor,
    stride_vh: tl.tensor,
    stride_vs: tl.tensor,
    stride_vd: tl.tensor,
    stride_ob: tl.tensor,
    stride_oh: tl.tensor,
    stride_ot: tl.tensor,
    stride_od: tl.tensor,
    stride_ab: tl.tensor,
    stride_ah: tl.tensor,
    stride_at: tl.tensor,
    stride_qsb: tl.tensor,
    stride_qsh: tl.tensor,
    stride_qst: tl.tensor,
    stride_vsb: tl.tensor,
    stride_vsh: tl.tensor,
    stride_vss: tl.tensor,
    stride_mb: tl.tensor,
    stride_mh: tl.tensor,
    stride_mt: tl.tensor,
    stride_ms: tl.tensor,
    num_kv_heads: tl.tensor,
    group: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    chunk: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One chunk of keys for BLOCK_M of the (query head, token) rows of one key/value head.

    Programs: (B · Hkv · blocks of rows, chunks). With ``partial`` None there is one chunk, and z is written; else
    ``partial`` gets each row's unnormalised sum, ``statistics`` its largest score and its sum of weights. HIDDEN is
    what hides a key in ``attn_mask``: 0 in a boolean one, else −∞.
    """
    num_rows = group * num_queries
    num_row_blocks = tl.cdiv(num_rows, BLOCK_M)
    row_block = tl.program_id(0) % num_row_blocks
    batch_head = (tl.program_id(0) // num_row_blocks).to(tl.int64)
    batch, kv_head = batch_head // num_kv_heads, batch_head % num_kv_heads
    split = tl.program_id(1)

    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    has_row = row < num_rows
    head = kv_head * group + row // num_queries
    token = row % num_queries
    dim = tl.arange(0, BLOCK_D)
    has_dim = dim < HEAD_DIM

    q_offset = batch * stride_qb + head * stride_qh + token * stride_qt
    q = tl.load(
        query + q_offset[:, None] + dim[None, :] * stride_qd, mask=has_row[:, None] & has_dim[None, :], other=0.0
    )
    row_scale = tl.full([BLOCK_M], 1.0, tl.float32) * scale
    if query_scale is not None:
        qs_offset = batch * stride_qsb + head * stride_qsh + token * stride_qst
        row_scale *= tl.load(query_scale + qs_offset, mask=has_row, other=0.0)

    start = tl.minimum(split * chunk, num_keys)
    stop = tl.minimum(start + chunk, num_keys)
    position = tl.arange(0, BLOCK_N)
    key += batch * stride_kb + kv_head * stride_kh
    value += batch * stride_vb + kv_head * stride_vh
    k_offset = position[:, None] * stride_ks + dim[None, :] * stride_kd
    v_offset = position[:, None] * stride_vs + dim[None, :] * stride_vd
    if value_scale is not None:
        value_scale += batch * stride_vsb + kv_head * stride_vsh
    if attn_mask is not None:
        attn_mask += (batch * stride_mb + head * stride_mh + token * stride_mt)[:, None] + position * stride_ms
        # First where the mask, which is small beside the keys, ends for these rows: the unused slots of a static cache
        # are then not read, whatever they hold.
        end = tl.zeros([BLOCK_M, BLOCK_N], tl.int32) + start
        for first in range(start, stop, BLOCK_N):
            inside = has_row[:, None] & (position < stop - first)[None, :]
            m = tl.load(attn_mask + tl.cast(first, tl.int64) * stride_ms, mask=inside, other=HIDDEN)
            end = tl.where(m == HIDDEN, end, first + position[None, :] + 1)
        stop = tl.max(end)

    most = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(start, stop, BLOCK_N):
        # 64 bits for the step's place only: the offsets within it stay small.
        place = tl.cast(first, tl.int64)
        has_column = position < stop - first
        wanted = has_column[:, None] & has_dim[None, :]
        k = tl.load(key + place * stride_ks + k_offset, mask=wanted, other=0.0)
        scores = dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * row_scale[:, None]
        if attn_mask is not None:
            inside = has_row[:, None] & has_column[None, :]
            m = tl.load(attn_mask + place * stride_ms, mask=inside, other=HIDDEN)
            if HIDDEN == 0:
                scores = tl.where(m == 0, -float("inf"), scores)
            else:
                scores += m.to(tl.float32)
        else:
            scores = tl.where(has_column[None, :], scores, -float("inf"))
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        shift = tl.where(new_most == -float("inf"), 0.0, new_most)
        p = _exp(scores - shift[:, None])
        decay = _exp(most - shift)
        most = new_most
        total = total * decay + tl.sum(p, axis=1)
        if value_scale is not None:
            vs_pointers = value_scale + place * stride_vss + position * stride_vss
            p *= tl.load(vs_pointers, mask=has_column, other=0.0)[None, :]
        v = tl.load(value + place * stride_vs + v_offset, mask=wanted, other=0.0)
        y = dot(p.to(v.dtype), v, y * decay[:, None])

    written = has_row[:, None] & has_dim[None, :]
    if partial is None:
        y /= tl.where(total == 0, 1.0, total)[:, None]
        if own_value is not None:
            o_offset = batch * stride_ob + kv_head * stride_oh + token * stride_ot
            own = tl.load(own_value + o_offset[:, None] + dim[None, :] * stride_od, mask=written, other=0.0)
            alpha = None
            if strength is not None:
                a_offset = batch * stride_ab + head * stride_ah + token * stride_at
                alpha = tl.load(strength + a_offset, mask=has_row, other=0.0)
            unit, _, is_unit = direction(own.to(tl.float32), eps)
            y, _ = exclude_rows(y, unit, is_unit, alpha)
        z_row = (batch * num_queries + token) * (num_kv_heads * group) + head
        tl.store(z + z_row[:, None] * HEAD_DIM + dim[None, :], y.to(z.dtype.element_ty), mask=written)
    else:
        place = (batch_head * tl.num_programs(1) + split) * num_rows + row
        tl.store(partial + place[:, None] * HEAD_DIM + dim[None, :], y, mask=written)
        tl.store(statistics + 2 * place, most, mask=has_row)
        tl.store(statistics + 2 * place + 1, total, mask=has_row)


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    partial: tl.tensor,
    statistics: tl.tensor,
    own_value: tl.tensor,
    strength: tl.tensor,
    z: tl.tensor,
    stride_ob: tl.tensor,
    stride_oh: tl.tensor,
    stride_ot: tl.tensor,
    stride_od: tl.tensor,
    stride_ab: tl.tensor,
    stride_ah: tl.tensor,
    stride_at: tl.tensor,
    num_kv_heads: tl.tensor,
    group: tl.tensor,
    num_queries: tl.tensor,
    num_splits: tl.tensor,
    eps: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """The chunks' results, each weighted by its share of the softmax, then the projection: one program a row."""
    num_rows = group * num_queries
    batch_head = (tl.program_id(0) // num_rows).to(tl.int64)
    row = tl.program_id(0) % num_rows
    batch, kv_head = batch_head // num_kv_heads, batch_head % num_kv_heads
    head, token = kv_head * group + row // num_queries, row % num_queries
    split = tl.arange(0, BLOCK_SPLITS)
    dim = tl.arange(0, BLOCK_D)
    has_dim = dim < HEAD_DIM

    most = tl.full([BLOCK_SPLITS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_SPLITS], tl.float32)
    sums = tl.zeros([BLOCK_SPLITS, BLOCK_D], tl.float32)
    for first in range(0, num_splits, BLOCK_SPLITS):
        has_split = first + split < num_splits
        place = (batch_head * num_splits + first + split) * num_rows + row
        part_most = tl.load(statistics + 2 * place, mask=has_split, other=-float("inf"))
        part_total = tl.load(statistics + 2 * place + 1, mask=has_split, other=0.0)
        part = tl.load(
            partial + place[:, None] * HEAD_DIM + dim[None, :], mask=has_split[:, None] & has_dim[None, :], other=0.0
        )
        new_most = tl.maximum(most, part_most)
        shift = tl.where(new_most == -float("inf"), 0.0, new_most)
        decay, weight = _exp(most - shift), _exp(part_most - shift)
        most = new_most
        total = total * decay + part_total * weight
        sums = sums * decay[:, None] + part * weight[:, None]
    highest = tl.max(most, axis=0)
    weight = _exp(most - tl.where(highest == -float("inf"), 0.0, highest))
    whole = tl.sum(total * weight, axis=0)
    y = tl.sum(sums * weight[:, None], axis=0)[None, :] / tl.where(whole == 0, 1.0, whole)

    if own_value is not None:
        o_pointers = own_value + batch * stride_ob + kv_head * stride_oh + token * stride_ot + dim * stride_od
        own = tl.load(o_pointers, mask=has_dim, other=0.0).to(tl.float32)[None, :]
        alpha = None
        if strength is not None:
            alpha = tl.load(strength + batch * stride_ab + head * stride_ah + token * stride_at)
        unit, _, is_unit = direction(own, eps)
        y, _ = exclude_rows(y, unit, is_unit, alpha)
    z_row = (batch * num_queries + token) * (num_kv_heads * group) + head
    tl.store(z + z_row * HEAD_DIM + dim[None, :], y.to(z.dtype.element_ty), mask=has_dim[None, :])


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    *,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    attn_mask: Tensor | None,
    scale: float,
    eps: float,
    config: Config | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Attention of a few new queries on a cache, and the projection away from the new tokens' own values.

        y_i = Σ_j p_ij τ_v,j v_j,   p = softmax(τ_q scale q kᵀ + mask),   z_i = y_i − α (y_i · v̂_i) v̂_i

    Without a gradient. A row that may see nothing gives 0. What is launched depends on shapes alone, so a CUDA graph
    may hold it.

    Args:
        query: ``[B, H, T, D]``, T few; any strides, as all that follows.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv; a static cache may hold anything where ``attn_mask`` hides it.
        value: ``[B, Hkv, S, D]``.
        own_value: the new tokens' values ``[B, Hkv, T, D]``; ``None`` for plain attention.
        strength: α, float32 ``[B, H, T]``; ``None`` for 1.
        query_scale: τ_q, float32 ``[B, H, T]``.
        value_scale: τ_v, float32 ``[B, Hkv, S]``.
        attn_mask: ``[B, H, T, S]``, boolean (True: may attend) or floating (added to the scores).
        scale: of the scores.
        eps: the least norm that v is divided by.
        config: ``BLOCK_M`` (at most so many rows a program), ``BLOCK_N`` (keys a step), ``num_warps``, ``num_stages``;
            ``None`` for the tuned ones.
        num_splits: into how many chunks the keys are split; ``None`` for as many as occupy the device.

    Returns:
        z ``[B, H, T, D]`` in the query's dtype; its memory is ``[B, T, H, D]``.
    """
    batch, num_heads, num_queries, head_dim = query.shape
    num_kv_heads, num_keys = key.shape[1:3]
    group = num_heads // num_kv_heads
    num_rows = group * num_queries
    config = config or choose_config("decode", head_dim, query.dtype, query.device)
    block_m = min(config["BLOCK_M"], max(16, triton.next_power_of_2(num_rows)))
    block_n, block_d = config["BLOCK_N"], padded(head_dim)
    programs = batch * num_kv_heads * triton.cdiv(num_rows, block_m)
    if num_splits is None:
        num_splits = choose_splits(programs, triton.cdiv(num_keys, block_n), _multiprocessors(query.device))
    chunk = triton.cdiv(triton.cdiv(num_keys, num_splits), block_n) * block_n

    z = query.new_empty(batch, num_queries, num_heads, head_dim).transpose(1, 2)
    partial = statistics = None
    if num_splits > 1:
        places = batch * num_kv_heads, num_splits, num_rows
        partial = query.new_empty(*places, head_dim, dtype=torch.float32)
        statistics = query.new_empty(*places, 2, dtype=torch.float32)
    mask_is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    own_strides, strength_strides = _strides(own_value, 4), _strides(strength, 3)
    with torch.cuda.device_of(query):
        decode_kernel[(programs, num_splits)](
            query,
            key,
            value,
            own_value,
            strength,
            query_scale,
            value_scale,
            attn_mask.view(torch.uint8) if attn_mask is not None and mask_is_bool else attn_mask,
            z,
            partial,
            statistics,
            *query.stride(),
            *key.stride(),
            *value.stride(),
            *own_strides,
            *strength_strides,
            *_strides(query_scale, 3),
            *_strides(value_scale, 3),
            *_strides(attn_mask, 4),
            num_kv_heads,
            group,
            num_queries,
            num_keys,
            chunk,
            scale,
            eps,
            HEAD_DIM=head_dim,
            HIDDEN=0 if mask_is_bool else -math.inf,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
            enable_fp_fusion=True,
        )
        if num_splits > 1:
            merge_kernel[(batch * num_heads * num_queries,)](
                partial,
                statistics,
                own_value,
                strength,
                z,
                *own_strides,
                *strength_strides,
                num_kv_heads,
                group,
                num_queries,
                num_splits,
                eps,
                HEAD_DIM=head_dim,
                BLOCK_SPLITS=min(16, triton.next_power_of_2(num_splits)),
                BLOCK_D=block_d,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return z


def choose_splits(programs: int, steps: int, multiprocessors: int) -> int:
    """Into how many chunks to split the keys.

    Args:
        programs: how many programs run for each chunk.
        steps: BLOCK_N keys each, that one program would take for all of them.
        multiprocessors: of the device.

    Returns:
        As many as occupy the device once, no more than there are steps, and chunks of equal numbers of steps.
    """
    room = max(1, _PROGRAMS_A_MULTIPROCESSOR * multiprocessors // programs)
    splits = min(room, steps, _MOST_SPLITS)
    steps_a_chunk = -(-steps // splits)
    return -(-steps // steps_a_chunk)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # the interpreter runs one program after another
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _strides(x: Tensor | None, ndim: int) -> tuple[int, ...]:
    return (0,) * ndim if x is None else tuple(x.stride())
