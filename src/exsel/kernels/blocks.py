"""Windows and packed sequences by stock attention, without a mask of all queries by all keys.

Packed sequences are one stock call each; neighbours of one length are a batch of one call. A window is blocks of
queries with the keys that they can see, and a mask of one block's size. The backward needs the output and the
log-sum-exp of all tokens, as that of one stock call does.

Shapes: query [B, H, T, D], key and value [B, Hkv, T, D], sequence [B, T].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from exsel.kernels import stock
from exsel.kernels.scale import scale_heads
from exsel.reference import accumulation_dtype

#: Fewer queries in a block make stock attention's products too small; more see more keys that the mask then hides.
_FEWEST_QUERIES = 256


@dataclass(frozen=True)
class Piece:
    """One stock call: of each of ``count`` sequences of ``length`` tokens from ``start`` on, some queries and keys."""

    rows: slice
    start: int
    count: int
    length: int
    queries: slice
    keys: slice
    is_causal: bool
    mask: Tensor | None

    def cut(self, x: Tensor, part: slice) -> Tensor:
        """The ``part`` of each sequence of x [B, heads, T, …], a view: [B or count, heads, tokens, …]."""
        x = x[self.rows, :, self.start : self.start + self.count * self.length]
        if self.count > 1:
            x = x.unflatten(2, (self.count, self.length)).squeeze(0).transpose(0, 1)
        return x[:, :, part]

    def join(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`cut` for a piece that is everything."""
        return x.transpose(0, 1).flatten(1, 2).unsqueeze(0) if self.count > 1 else x


def pieces(query: Tensor, sequence: Tensor | None, is_causal: bool, window: int | None) -> list[Piece]:
    """The stock calls that a call consists of."""
    masks: dict[tuple[int, int, int], Tensor] = {}

    def band(num_queries: int, num_keys: int, before: int) -> Tensor:
        """Added to the scores of a block before whose first query's own key there are ``before`` keys."""
        key = num_queries, num_keys, before
        if key not in masks:
            index = torch.arange(max(num_queries + before, num_keys), device=query.device)
            distance = index[before : before + num_queries].unsqueeze(-1) - index[:num_keys]
            is_hidden = distance < 0 if is_causal else torch.zeros_like(distance, dtype=torch.bool)
            if window is not None:
                is_hidden = is_hidden | (distance.abs() >= window)
            masks[key] = query.new_zeros(num_queries, num_keys).masked_fill_(is_hidden, -torch.inf)
        return masks[key]

    found = []
    for rows, start, count, length in _groups(sequence, query.shape[2]):
        sees_all = window is None or window >= length
        step = length if sees_all else max(window or 0, _FEWEST_QUERIES)
        for begin in range(0, length, step):
            end = min(begin + step, length)
            first = 0 if sees_all else max(0, begin - (window or 0) + 1)
            last = end if is_causal else length if sees_all else min(length, end + (window or 0) - 1)
            is_cut = window is not None and max(end - first, last - begin) > window
            is_stock = not is_cut and (not is_causal or first == begin)
            mask = None if is_stock else band(end - begin, last - first, begin - first)
            found.append(
                Piece(rows, start, count, length, slice(begin, end), slice(first, last), is_causal and is_stock, mask)
            )
    return found


def _groups(sequence: Tensor | None, num_tokens: int) -> Iterator[tuple[slice, int, int, int]]:
    """Rows of the batch, first token, number and length of sequences that stand side by side."""
    is_end = None if sequence is None else sequence[:, 1:] != sequence[:, :-1]
    if is_end is None or not is_end.any():
        yield slice(None), 0, 1, num_tokens
        return
    for row, ends in enumerate(is_end):
        edges = torch.tensor([0, *(ends.nonzero().flatten() + 1).tolist(), num_tokens])
        start = 0
        for length, same in groupby(edges.diff().tolist()):
            count = len(list(same))
            yield slice(row, row + 1), start, count, length
            start += count * length


def empty_results(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """y and what the kernel keeps of its softmax, of the right layout and no values."""
    y = torch.empty_like(query)
    if stock.choose_kernel(query, key, value, None, False, 1.0) == "math":
        return y, query.new_empty(query.shape[0], 0)
    dtype = accumulation_dtype(query.dtype)
    return y, torch.empty_permuted(query.shape[:3], (0, 2, 1), dtype=dtype, device=query.device)


def forward_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequence: Tensor | None,
    is_causal: bool,
    window: int | None,
    scale: float,
    query_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`exsel.kernels.stock.forward`, where a token sees its own sequence and window only.

    Queries and values are multiplied by ``query_scale`` [B, H, T] and ``value_scale`` [B, Hkv, T] a piece at a time.
    """
    found = pieces(query, sequence, is_causal, window)
    y, logsumexp = empty_results(query, key, value)
    for piece in found:
        own_query, own_value = piece.cut(query, piece.queries), piece.cut(value, piece.keys)
        if query_scale is not None:
            own_query = scale_heads(own_query, piece.cut(query_scale, piece.queries))
        if value_scale is not None:
            own_value = scale_heads(own_value, piece.cut(value_scale, piece.keys))
        mixed, normalizer = stock.forward(
            own_query, piece.cut(key, piece.keys), own_value, piece.mask, piece.is_causal, scale
        )
        if len(found) == 1 and _is_laid_out(joined := piece.join(mixed), y):
            return joined, piece.join(normalizer) if logsumexp.ndim == 3 else logsumexp
        piece.cut(y, piece.queries).copy_(mixed)
        if logsumexp.ndim == 3:
            piece.cut(logsumexp, piece.queries).copy_(normalizer)
    return y, logsumexp


def _is_laid_out(x: Tensor, like: Tensor) -> bool:
    """Whether x has the strides that a compiler was told of."""
    pairs = zip(x.shape, x.stride(), like.stride(), strict=True)
    return all(size == 1 or stride == expected for size, stride, expected in pairs)


def empty_gradients(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Of query, key and value, of the right layout and no values."""
    return tuple(
        torch.empty_permuted(x.shape, (0, 2, 1, 3), dtype=x.dtype, device=x.device) for x in (query, key, value)
    )


def backward_in_blocks(
    dy: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequence: Tensor | None,
    y: Tensor,
    logsumexp: Tensor,
    is_causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv by the backward of the kernel that ran :func:`forward_in_blocks`."""
    found = pieces(query, sequence, is_causal, window)
    dq, dk, dv = empty_gradients(query, key, value)
    # Blocks share keys, and their sums are not rounded before they are complete.
    sums = [x if window is None else torch.zeros_like(x, dtype=accumulation_dtype(x.dtype)) for x in (dk, dv)]
    for piece in found:
        own = piece.cut(query, piece.queries), piece.cut(key, piece.keys), piece.cut(value, piece.keys)
        kept = piece.cut(logsumexp, piece.queries) if logsumexp.ndim == 3 else logsumexp
        dmixed, mixed = piece.cut(dy, piece.queries), piece.cut(y, piece.queries)
        parts = stock.backward(dmixed, *own, piece.mask, mixed, kept, piece.is_causal, scale)
        if len(found) == 1:
            dq, dk, dv = map(piece.join, parts)
            return dq, dk, dv
        piece.cut(dq, piece.queries).copy_(parts[0])
        for total, part in zip(sums, parts[1:], strict=True):
            into = piece.cut(total, piece.keys)
            into.copy_(part) if window is None else into.add_(part)
    return dq, sums[0].to(key.dtype), sums[1].to(value.dtype)
