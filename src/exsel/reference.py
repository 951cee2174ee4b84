"""The mathematics, in plain differentiable PyTorch: the oracle that everything faster is tested against.

Shapes: query heads H, key/value heads Hkv with H a multiple of Hkv, tokens T, head dimension D; tensors are
[..., H, T, D], scales and strengths [..., H, T]. Query head h reads key/value head h // (H / Hkv). Sums and norms
accumulate in float32 (float64 for float64 inputs); results return in the input's dtype.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.config import PositionForm


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_autocast(device_type: str) -> bool:
    """Whether autocast knows tensors of this kind of device; it does not know meta tensors."""
    # PyTorch 2.11's compiler cannot trace the question; what it compiles for has autocast.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)


def _per_group(x: Tensor, num_kv_heads: int) -> Tensor:
    """[..., H, T, D] as [..., Hkv, H / Hkv, T, D]: a view."""
    grouped: Tensor = x.unflatten(-3, (num_kv_heads, -1))
    return grouped


def _group_heads(x: Tensor, num_heads: int) -> Tensor:
    """[..., Hkv, T, D] with each head repeated for the query heads of its group: [..., H, T, D]."""
    return x if x.shape[-3] == num_heads else x.repeat_interleave(num_heads // x.shape[-3], dim=-3)


def exclude(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> Tensor:
    """z = y − α (y·v̂) v̂ with v̂ = v / max(‖v‖, eps); α = 1 where ``strength`` is None.

    y [..., H, T, D], own_value [..., Hkv, T, D], strength [..., H, T].
    """
    dtype = accumulation_dtype(y.dtype)
    grouped_y = _per_group(y.to(dtype), own_value.shape[-3])
    v = own_value.to(dtype).unsqueeze(-3)
    # v̂ does not depend on the scale of v: dividing by the largest entry first keeps the squares representable.
    largest = torch.linalg.vector_norm(v.detach(), ord=math.inf, dim=-1, keepdim=True).clamp_min(eps)
    scaled = v / largest
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = scaled / torch.maximum(norm, eps / largest)
    # Below eps v̂ is shorter than 1 and I − v̂v̂ᵀ is no projection: it must be applied once only.
    is_unit = (norm > eps / largest).to(dtype)
    # A projection may be applied twice. The second time removes what rounding left along v̂, which matters where z is
    # much smaller than y. Sums are over y times 2⁻⁸ v̂, so that y·v̂ is representable wherever y and z are.
    small, large = unit * 2.0**-8, unit * 2.0**8
    along = (grouped_y * small).sum(-1, keepdim=True)
    rest = grouped_y - along * large
    left = (rest * small).sum(-1, keepdim=True) * is_unit
    if strength is None:
        z = rest - left * large
    else:
        alpha = strength.to(dtype).unflatten(-2, (own_value.shape[-3], -1)).unsqueeze(-1)
        z = rest + ((1 - alpha) * along - alpha * left) * large
    ungrouped: Tensor = z.flatten(-4, -3).to(y.dtype)
    return ungrouped


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
    """softmax(τ_q q kᵀ · scale + mask) (τ_v v); a query that may attend to no key gives 0.

    query [..., H, T, D], key and value [..., Hkv, S, D], query_scale [..., H, T], value_scale [..., Hkv, S].
    """
    dtype = accumulation_dtype(query.dtype)
    num_heads = query.shape[-3]
    q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    if query_scale is not None:
        q = q * query_scale.to(dtype).unsqueeze(-1)
    if value_scale is not None:
        v = v * value_scale.to(dtype).unsqueeze(-1)
    scores = q @ _group_heads(k, num_heads).transpose(-2, -1) * scale
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        is_boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if is_boolean else scores + attn_mask
    nothing = (scores == -math.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)
    weights = F.dropout(weights, dropout_p)
    return (weights @ _group_heads(v, num_heads)).to(query.dtype)


def allowed(
    num_queries: int,
    num_keys: int,
    is_causal: bool,
    sliding_window: int | None,
    sequence: Tensor | None,
    device: torch.device | None = None,
    first_query: int = 0,
) -> Tensor:
    """Which keys each query may attend to, boolean [T, S]: not later, closer than the window, in its own sequence.

    The first query belongs to the token of key ``first_query``. With ``sequence`` [..., T = S], which numbers each
    token's packed sequence, the result is [..., 1, T, S].
    """
    query_index = first_query + torch.arange(num_queries, device=device).unsqueeze(-1)
    key_index = torch.arange(num_keys, device=device)
    distance = query_index - key_index
    may = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    if sliding_window is not None:
        may = may & (distance.abs() < sliding_window)
    if sequence is not None:
        may = may & (sequence.unsqueeze(-1) == sequence.unsqueeze(-2)).unsqueeze(-3)
    return may


def token_term(features: Tensor, weight: Tensor) -> Tensor:
    """τ_tok = tanh(w · GELU(x)): features x [..., H, T, D], weight w [H, D] or [1, D]; [..., H, T] in float32."""
    dtype = accumulation_dtype(features.dtype)
    return torch.tanh((F.gelu(features.to(dtype)) * weight.to(dtype).unsqueeze(-2)).sum(-1))


def linear_token_term(features: Tensor, weight: Tensor) -> Tensor:
    """τ_tok = tanh(w · x): features x [..., T, D] for all heads, weight w [H, D] or [1, D]; [..., H or 1, T]."""
    dtype, device = accumulation_dtype(features.dtype), features.device.type
    # Autocast would round the product to bfloat16.
    with torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext():
        return torch.tanh(F.linear(features.to(dtype), weight.to(dtype)).transpose(-2, -1))


def position_coefficient(position_logit: Tensor, form: PositionForm) -> Tensor:
    """c(a), which log n is multiplied by: σ(a), or in the double-exponential form exp(−exp a)."""
    return torch.sigmoid(position_logit) if form == "sigmoid" else torch.exp(-torch.exp(position_logit))


def position_logit_of(coefficient: float, form: PositionForm) -> float:
    """The a of which c(a), in (0, 1), is the coefficient: the inverse of :func:`position_coefficient`."""
    odds = math.log(coefficient / (1 - coefficient))
    return odds if form == "sigmoid" else math.log(-math.log(coefficient))


def position_term(position: Tensor, position_logit: Tensor, form: PositionForm = "sigmoid") -> Tensor:
    """τ_pos = 1 + c(a) log n: position n [..., T], 1-based; position_logit a [H] or [1]; [..., H or 1, T]."""
    dtype = accumulation_dtype(position_logit.dtype)
    log_n = position.to(dtype).log().unsqueeze(-2)
    return 1 + position_coefficient(position_logit.to(dtype), form).unsqueeze(-1) * log_n


def inverse_temperature(
    features: Tensor,
    weight: Tensor,
    position: Tensor | None,
    position_logit: Tensor | None,
    position_form: PositionForm = "sigmoid",
) -> Tensor:
    """τ = τ_tok + τ_pos, with τ_pos = 1 if ``position_logit`` is None; features of each head."""
    if position_logit is None:
        return 1 + token_term(features, weight)
    assert position is not None
    return token_term(features, weight) + position_term(position, position_logit, position_form)
