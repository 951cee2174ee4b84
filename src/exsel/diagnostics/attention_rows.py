"""Numbers that summarise each row of attention weights, computed for a block of queries at a time.

The whole matrix never exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exsel.diagnostics.mixing import Mixing
from exsel.diagnostics.sequences import Tokens
from exsel.nn.positions import HIDDEN

#: Size of the scores of one block of queries; about four tensors of this size exist at a time.
BLOCK_BYTES = 64 * 2**20

#: A score this far below the largest has no weight in any dtype.
_NOTHING = -1e4
#: The weights computed here may differ from the layer's own by this many roundings of a score or a value.
_ROUNDINGS = 16


def attention_rows(
    mixing: Mixing, tokens: Tokens, y: Tensor, block_bytes: int = BLOCK_BYTES
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute each query's row of attention weights p in float32 (float64 for float64 inputs) and its numbers.

    Args:
        mixing: the inputs of the layer's attention.
        tokens: the places of the queries.
        y: ``[B, H, T, Dv]``, the output of the layer's attention.
        block_bytes: largest size of the scores of one block.

    Returns:
        Numbers by metric, and whether weights computed here give the layer's own output within rounding:
        ``[B, H, T]`` each. ``self_weight`` is the weight on the token itself, ``sink_mass`` that on the first token of
        its sequence; ``entropy``, ``effective_tokens`` and ``spikiness`` are of the weights among tokens, without a
        learned sink's share.
    """
    batch, num_heads, num_tokens, _ = mixing.query.shape
    dtype = torch.float64 if mixing.query.dtype == torch.float64 else torch.float32
    key, value = mixing.key.to(dtype), mixing.value.to(dtype)
    # The largest key and value of a head bound the effect of a rounding of its scores.
    key_size = key.norm(dim=-1).amax(-1).repeat_interleave(num_heads // key.shape[1], dim=1)
    value_size = value.abs().amax((-2, -1)).repeat_interleave(num_heads // value.shape[1], dim=1)
    eps = _eps(key.device)
    names = ("self_weight", "sink_mass", "entropy", "spikiness")
    found = {name: torch.empty(batch, num_heads, num_tokens, dtype=dtype, device=key.device) for name in names}
    is_verified = torch.empty(batch, num_heads, num_tokens, dtype=torch.bool, device=key.device)
    step = max(1, block_bytes // (batch * num_heads * key.shape[2] * dtype.itemsize))
    for start in range(0, num_tokens, step):
        block = slice(start, min(start + step, num_tokens))
        scores, num_visible, bias_size = _scores(mixing, key, block)
        largest = scores.amax(-1, keepdim=True)
        scores.sub_(largest).clamp_min_(_NOTHING)
        weights = scores.exp()
        total = weights.sum(-1)
        size = torch.linalg.vector_norm(weights, dim=-1)
        mean_score = scores.mul_(weights).sum(-1) / total
        share = torch.ones_like(total)
        if mixing.sinks is not None:
            # The tokens' share of the softmax over the tokens and the sink.
            share = torch.sigmoid(total.log() + largest.squeeze(-1) - mixing.sinks.to(dtype).view(1, -1, 1))
        itself = torch.arange(block.start, block.stop, device=key.device) + mixing.own
        first = tokens.first[:, block] + mixing.own
        for name, column in (("self_weight", itself.expand_as(first)), ("sink_mass", first)):
            weight = weights.gather(-1, column[:, None, :, None].expand(-1, num_heads, -1, 1)).squeeze(-1)
            found[name][..., block] = weight.mul_(share / total).clamp_max_(1.0)
        found["entropy"][..., block] = (total.log() - mean_score).clamp_min(0.0)
        # In float32, Σp² of equal weights may be below 1/L.
        found["spikiness"][..., block] = (total.square() / (size.square() * num_visible)).clamp_max(1.0)
        mixed = _by_kv_head(weights, value.shape[1]) @ value[:, :, : weights.shape[-1]]
        mixed = mixed.view(*total.shape, -1).mul_((share / total).unsqueeze(-1))
        error = (mixed - y[:, :, block].to(dtype)).abs().amax(-1)
        query_size = mixing.query[:, :, block].to(dtype).norm(dim=-1)
        score_size = 1 + abs(mixing.scaling) * query_size * key_size.unsqueeze(-1) + bias_size
        is_verified[..., block] = error <= _ROUNDINGS * eps * score_size * value_size.unsqueeze(-1)
    return {**found, "effective_tokens": found["entropy"].exp()}, is_verified


def _by_kv_head(states: Tensor, num_kv_heads: int) -> Tensor:
    """``[B, H, Q, …]`` → ``[B, Hkv, G·Q, …]``: all queries of a group in one head, so that no key is repeated."""
    grouped: Tensor = states.unflatten(1, (num_kv_heads, -1))
    return grouped.flatten(2, 3)


def _scores(mixing: Mixing, key: Tensor, block: slice) -> tuple[Tensor, Tensor, Tensor | float]:
    """For a block of queries: scores ``[B, H, Q, K]``, how many tokens each query sees, and the size of added terms."""
    query = mixing.query[:, :, block].to(key.dtype)
    if mixing.is_causal and mixing.own == 0:
        key = key[:, :, : block.stop]  # no query of the block sees a later key
    num_keys = key.shape[2]
    scores = (_by_kv_head(query, key.shape[1]) @ key.transpose(-2, -1)).view(*query.shape[:3], num_keys)
    scores.mul_(mixing.scaling)
    if mixing.softcap is not None:
        scores.div_(mixing.softcap).tanh_().mul_(mixing.softcap)
    bias_size: Tensor | float = 0.0
    visible = torch.ones(1, 1, 1, num_keys, dtype=torch.bool, device=key.device)
    for added in (mixing.bias, mixing.mask):
        if added is None:
            continue
        added = (added[:, :, block] if added.shape[2] > 1 else added)[..., :num_keys]
        if added.dtype == torch.bool:
            visible = visible & added
        else:
            seen = added > HIDDEN
            bias_size = bias_size + added.masked_fill(~seen, 0.0).abs().amax(-1)
            visible = visible & seen
            scores.add_(added)
    place = torch.arange(block.start, block.stop, device=key.device).unsqueeze(-1) + mixing.own
    other = torch.arange(num_keys, device=key.device)
    if mixing.is_causal:
        visible = visible & (other <= place)
    if mixing.window is not None:
        visible = visible & ((place - other).abs() < mixing.window)
    scores.masked_fill_(~visible, torch.finfo(scores.dtype).min)
    return scores, visible.sum(-1), bias_size


def _eps(device: torch.device) -> float:
    """One rounding of the layer's own attention: transformers' eager softmax is float32 in a float64 model too."""
    is_tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-11 if is_tf32 else torch.finfo(torch.float32).eps
