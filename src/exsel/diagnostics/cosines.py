"""Cosines: of outputs with own values, of values with each other, and of both without their common direction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.diagnostics.sequences import Tokens
from exsel.reference import accumulation_dtype

#: A difference of vectors has no direction if it is no longer than this many roundings of the vectors.
_ROUNDINGS = 16
#: A shorter vector has no direction.
_TINY = 1e-12


def similarity(y: Tensor, own_value: Tensor) -> Tensor:
    """cos(y, v), ``[B, H, T]``, of ``y`` ``[B, H, T, D]`` and ``own_value`` ``[B, Hkv, T, D]``."""
    dtype = accumulation_dtype(y.dtype)
    grouped = y.to(dtype).unflatten(1, (own_value.shape[1], -1))
    cosines: Tensor = F.cosine_similarity(grouped, own_value.to(dtype).unsqueeze(2), dim=-1, eps=_TINY)
    return cosines.clamp(-1.0, 1.0).flatten(1, 2)


def similarity_after(z: Tensor, y: Tensor, own_value: Tensor) -> Tensor:
    """cos(z, v), ``[B, H, T]``, where z is y less something; 0 where z is only rounding."""
    return similarity(z, own_value).masked_fill(_is_rounding(z, y), 0.0)


def value_similarity(own_value: Tensor, tokens: Tokens) -> Tensor:
    """Mean of cos(v_i, v_j) over all j ≠ i of a sequence, ``[B, Hkv, T]``; 0 in a sequence of one token.

    Computed from sums of unit vectors, in T·D steps instead of T²·D.
    """
    unit = F.normalize(own_value.to(accumulation_dtype(own_value.dtype)), dim=-1)
    total: Tensor = (unit * (_sequence_sums(unit, tokens) - unit)).sum(-1)
    return total / (tokens.length - 1).clamp_min(1).unsqueeze(1)


def centred_similarity(y: Tensor, own_value: Tensor, tokens: Tokens) -> Tensor:
    """cos(y, v) after the direction of the sequence's mean value is projected out of both, ``[B, H, T]``.

    0 where only rounding is left of either.
    """
    dtype = accumulation_dtype(y.dtype)
    y, own_value = y.to(dtype), own_value.to(dtype)
    common = F.normalize(_sequence_sums(own_value, tokens), dim=-1)
    value_left = own_value - (own_value * common).sum(-1, keepdim=True) * common
    grouped, direction = y.unflatten(1, (own_value.shape[1], -1)), common.unsqueeze(2)
    left = (grouped - (grouped * direction).sum(-1, keepdim=True) * direction).flatten(1, 2)
    nothing = _is_rounding(left, y)
    nothing |= _is_rounding(value_left, own_value).repeat_interleave(y.shape[1] // own_value.shape[1], dim=1)
    return similarity(left, value_left).masked_fill(nothing, 0.0)


def _is_rounding(left: Tensor, whole: Tensor) -> Tensor:
    eps = torch.finfo(accumulation_dtype(left.dtype)).eps
    is_rounding: Tensor = left.norm(dim=-1) <= _ROUNDINGS * eps * whole.norm(dim=-1)
    return is_rounding


def _sequence_sums(states: Tensor, tokens: Tokens) -> Tensor:
    """For each token the sum of ``states`` ``[B, H, T, D]`` over its sequence, without padding."""
    count = int(tokens.sequence.max()) + 1
    is_real, sequence = tokens.is_real.flatten(), tokens.sequence.flatten()
    precise = states.dtype if states.device.type == "mps" else torch.float64  # mps has no float64
    summed = torch.empty_like(states)
    for head in range(states.shape[1]):  # one head at a time saves memory
        rows = states[:, head].flatten(0, 1)
        sums = torch.zeros(count, rows.shape[-1], dtype=precise, device=rows.device)
        sums.index_add_(0, sequence[is_real], rows[is_real].to(precise))
        summed[:, head] = sums[sequence].view(states[:, head].shape).to(states.dtype)
    return summed
