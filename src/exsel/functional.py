"""The operators: arguments checked, a backend chosen, the backend called."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from exsel import dispatch, reference
from exsel.config import PositionForm
from exsel.dispatch import Backend
from exsel.kernels import sdpa
from exsel.kernels.exclude import exclude as exclude_pass
from exsel.kernels.exclude import exclude_directly
from exsel.kernels.operators import is_plain, is_unseen, is_watched
from exsel.kernels.sdpa import Call

#: The least norm that a value is divided by.
EPS = 1e-12

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check_tensors(required: dict[str, Tensor], optional: dict[str, Tensor | None]) -> None:
    """Tensors with memory of the usual kind, on one device; what is optional may be None."""
    tensors = required | {name: tensor for name, tensor in optional.items() if tensor is not None}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "a nested" if tensor.is_nested else f"a {str(tensor.layout).removeprefix('torch.')}"
            raise TypeError(f"{name} must be a dense tensor, got {kind} one")
    if len({tensor.device for tensor in tensors.values()}) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"all tensors must be on one device, got {places}")


def _check_floating(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None or tensor.dtype in _DTYPES:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        raise TypeError(f"{name} must be cast to float16, bfloat16, float32 or float64 first, got {tensor.dtype}")


def _check_own_value(shape: tuple[int, ...], dtype: torch.dtype, own_value: Tensor) -> None:
    """Against the shape [..., H, T, D] and dtype of attention's output y."""
    shapes = f"got {tuple(shape)} and {tuple(own_value.shape)}"
    if len(shape) < 3 or own_value.ndim != len(shape):
        raise ValueError(
            f"y and own_value must be [..., heads, tokens, head_dim] with equally many dimensions, {shapes}"
        )
    if own_value.shape[:-3] != shape[:-3] or own_value.shape[-2:] != shape[-2:]:
        raise ValueError(
            "own_value must hold one value for each token of y, and agree with it in all but the number of heads: "
            f"got {tuple(own_value.shape)} for y {tuple(shape)}. With a key/value cache pass the new tokens' values"
        )
    if min(shape[-3], own_value.shape[-3], shape[-1]) < 1:
        raise ValueError(f"y and own_value must have at least one head and a head_dim of at least 1, {shapes}")
    if shape[-3] % own_value.shape[-3]:
        raise ValueError(
            f"the {shape[-3]} heads of y must be a multiple of the {own_value.shape[-3]} heads of own_value"
        )
    if own_value.dtype != dtype:
        raise TypeError(f"own_value must have the dtype of y, {dtype}; got {own_value.dtype}")


def _check_strength(strength: float | Tensor | None) -> None:
    if isinstance(strength, Tensor):
        _check_floating(strength=strength)
    elif isinstance(strength, bool) or not (strength is None or isinstance(strength, (int, float))):
        raise TypeError(f"strength must be a number, a tensor or None (which is 1), got {strength!r}")
    elif strength is not None and not math.isfinite(strength):
        raise ValueError(f"strength must be finite, got {strength}")


def _is_one(strength: float | Tensor | None) -> bool:
    """Whether α is 1 without looking into a tensor."""
    return strength is None or (isinstance(strength, (int, float)) and strength == 1 and strength is not True)


def _expand_strength(strength: float | Tensor | None, y: Tensor) -> Tensor | None:
    """α as a view ``[..., H, T]``; None if α is 1."""
    if not isinstance(strength, Tensor):
        return None if strength is None or strength == 1 else y.new_full((), strength).expand(y.shape[:-1])
    by_token = strength.unsqueeze(-1) if strength.ndim == 1 and strength.shape[0] == y.shape[-3] else strength
    try:
        return by_token.expand(y.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"strength must be a number, one number a head [{y.shape[-3]}], or broadcast to "
            f"{tuple(y.shape[:-1])}; got {tuple(strength.shape)}"
        ) from None


def exclude(
    y: Tensor,
    own_value: Tensor,
    *,
    strength: float | Tensor | None = None,
    eps: float = EPS,
    backend: Backend = "auto",
) -> Tensor:
    """Exclusive self-attention's projection: remove from each head's output its component along the own value.

        z_i = y_i − α (y_i · v̂_i) v̂_i,    v̂_i = v_i / max(‖v_i‖, eps)

    A zero value leaves y as it is. Sums accumulate in float32 (float64 for float64). In the paper's symbols: y is
    y, ``own_value`` is v, ``strength`` is α (absent there: 1).

    Args:
        y: attention's output before the output projection, ``[..., H, T, D]``; any strides.
        own_value: each token's own value as attention mixed it, ``[..., Hkv, T, D]``, H a multiple of Hkv: the
            *current* tokens' values, not the cache's. Never repeated in memory.
        strength: α: ``None`` or 1 for the projection; another number, one a head ``[H]``, or anything that
            broadcasts to ``[..., H, T]``. Differentiable.
        eps: the least norm that v is divided by, as in ``torch.nn.functional.normalize``.
        backend: ``"auto"``; ``"sdpa"``: one pass in C++ on the CPU and in Triton on a GPU, where these can be had;
            or ``"reference"``. All are differentiable twice.

    Returns:
        z, with the shape and dtype of y.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or an eps that is not positive.
        TypeError: tensors that are not floating-point, or of two dtypes; a strength that is a boolean.

    Source: Zhai, "Exclusive Self Attention", arXiv:2603.09078 (2026), Section 3. The strength is follow-up work.
    """
    if (
        _is_one(strength)
        and backend == "auto"
        and eps > 0
        and is_unseen()
        and (direct := exclude_directly(y, own_value, eps)) is not None
    ):
        return direct
    _check_tensors({"y": y, "own_value": own_value}, {"strength": strength if isinstance(strength, Tensor) else None})
    _check_floating(y=y, own_value=own_value)
    _check_strength(strength)
    _check_own_value(y.shape, y.dtype, own_value)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    run = reference.exclude if dispatch.choose_backend(backend) == "reference" else exclude_pass
    return run(y, own_value, _expand_strength(strength, y), eps)


def _check_broadcast(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x broadcast to the shape, a view."""
    try:
        return x.expand(shape)
    except RuntimeError:
        raise ValueError(f"{name} must broadcast to {tuple(shape)}; got {tuple(x.shape)}") from None


def _check_attention(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"query, key and value must have one dtype, got {query.dtype}, {key.dtype} and {value.dtype}")
    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim >= 3:
        raise ValueError(f"query, key and value must be [..., heads, tokens, head_dim]; {shapes}")
    if query.shape[-1] != key.shape[-1] or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"query and key must agree in head_dim, key and value in everything before it; {shapes}")
    if query.shape[:-3] != key.shape[:-3]:
        raise ValueError(f"query and key must agree in their batch dimensions; {shapes}")
    if min(query.shape[-3], key.shape[-3], query.shape[-1], value.shape[-1]) < 1:
        raise ValueError(f"query, key and value must have at least one head and a head_dim of at least 1; {shapes}")
    if query.shape[-3] != key.shape[-3]:
        if not enable_gqa:
            raise ValueError(f"the numbers of heads differ: pass enable_gqa=True; {shapes}")
        if query.shape[-3] % key.shape[-3]:
            raise ValueError(f"the query heads must be a multiple of the key/value heads; {shapes}")


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    exclusive: bool = False,
    strength: float | Tensor | None = None,
    own_value: Tensor | None = None,
    query_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    sliding_window: int | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Scaled dot-product attention, exclusive and selective where asked.

        y = softmax((τ_q ⊙ q) kᵀ · scale + mask) (τ_v ⊙ v)        z = y − α (y·v̂) v̂

    Everything that ``torch.nn.functional.scaled_dot_product_attention`` has too means here what it means there.

    Args:
        query: ``[..., H, T, D]``.
        key: ``[..., Hkv, S, D]``.
        value: ``[..., Hkv, S, Dv]``.
        attn_mask: boolean (True: may attend) or additive, broadcasting to ``[..., H, T, S]``.
        dropout_p: probability with which an attention weight is dropped, whatever the training mode.
        is_causal: query i attends to keys 0 … i (aligned at the top left); not together with ``attn_mask``.
        scale: factor of the scores; ``None``: 1/√D.
        enable_gqa: allow H to be a multiple of Hkv.
        exclusive: remove the own value's direction from the output.
        strength: α of ``exclusive``, as :func:`exclude` takes it; ``None``: 1.
        own_value: the query tokens' own values ``[..., Hkv, T, Dv]``; ``None``: ``value``, which needs T = S.
            With a key/value cache pass the new tokens' values. Never scaled by ``value_scale``.
        query_scale: inverse temperature τ_q that multiplies each query, broadcasting to ``[..., H, T]``.
        value_scale: τ_v that multiplies each value before it is mixed, broadcasting to ``[..., Hkv, S]``.
        sliding_window: how many tokens each token sees (to either side unless causal), itself among them.
        cu_seqlens: integers ``[N + 1]``, from 0 to T: where each of N packed sequences begins and the last one ends,
            as FlashAttention's; a token sees its own sequence only. Needs T = S; the batch then is 1.
        backend: ``"auto"`` (see :func:`explain_backend`), ``"sdpa"``: PyTorch's kernels with our passes around them,
            or ``"reference"``. One that cannot run a call says so, and is never replaced by another.

    Returns:
        ``[..., H, T, Dv]`` in the query's dtype.

    Raises:
        ValueError: shapes that do not fit; ``attn_mask`` with ``is_causal``; ``exclusive`` without an own value
            where T ≠ S (cross-attention has none); ``own_value`` or ``strength`` without ``exclusive``; tensors on
            several devices; an unknown backend.
        TypeError: tensors that are not floating-point, or of several dtypes; an ``exclusive`` that is no boolean, or
            a ``strength`` that is one.

    Source: Zhai, arXiv:2603.09078 (2026), Section 3; Zhang et al., NeurIPS 2024, arXiv:2411.12892, Definition 1.
    """
    is_plain_call = exclusive is True and backend in ("auto", "sdpa") and dropout_p == 0 and _is_one(strength)
    is_whole = query_scale is None and value_scale is None and sliding_window is None and cu_seqlens is None
    if is_plain_call and is_whole:
        own, grouped = value if own_value is None else own_value, enable_gqa is True
        direct = sdpa.attend_directly(query, key, value, own, attn_mask, is_causal, scale, grouped, EPS)
        if direct is not None:
            return direct
    call = read_call(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        exclusive=exclusive,
        strength=strength,
        own_value=own_value,
        query_scale=query_scale,
        value_scale=value_scale,
        sliding_window=sliding_window,
        cu_seqlens=cu_seqlens,
    )
    return run_call(call, backend)


def run_call(call: Call, backend: Backend = "auto") -> Tensor:
    """:func:`attention` of checked arguments."""
    chosen = dispatch.choose_backend(backend)
    if call.is_banded and (chosen == "reference" or not sdpa.in_blocks(call)):
        call = replace(call, attn_mask=_banded_mask(call), is_causal=False)
    if chosen == "sdpa":
        return sdpa.attention(call, EPS)
    y = reference.attention(
        call.query,
        call.key,
        call.value,
        call.attn_mask,
        call.dropout_p,
        call.is_causal,
        call.scale,
        call.query_scale,
        call.value_scale,
    )
    return y if call.own_value is None else reference.exclude(y, call.own_value, call.strength, EPS)


def _banded_mask(call: Call) -> Tensor:
    """The mask of a call, with its causality, window and packed sequences in it."""
    band = reference.allowed(
        call.query.shape[-2],
        call.key.shape[-2],
        call.is_causal,
        call.sliding_window,
        call.sequence,
        call.query.device,
    )
    mask = call.attn_mask
    if mask is None:
        return band
    return mask & band if mask.dtype == torch.bool else mask.masked_fill(~band, -math.inf)


def explain_backend(query: Tensor, key: Tensor, value: Tensor, *, backend: Backend = "auto", **options: Any) -> str:
    """Which backend :func:`attention` would run with these arguments, and why, in words.

    Nothing is computed or compiled for it.

    Args:
        query, key, value, backend: as :func:`attention` takes them.
        options: all else that :func:`attention` takes.

    Raises:
        ValueError, TypeError: what :func:`attention` would raise.
    """
    return dispatch.explain(backend, read_call(query, key, value, **options))


def read_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    exclusive: bool = False,
    strength: float | Tensor | None = None,
    own_value: Tensor | None = None,
    query_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    sliding_window: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Call:
    """The checked arguments of :func:`attention`, in autocast's dtype where it is on."""
    if not isinstance(exclusive, bool):
        raise TypeError(f"exclusive must be True or False, got {exclusive!r}: a number or tensor is the strength")
    optional = {
        "attn_mask": attn_mask,
        "strength": strength if isinstance(strength, Tensor) else None,
        "own_value": own_value,
        "query_scale": query_scale,
        "value_scale": value_scale,
        "cu_seqlens": cu_seqlens,
    }
    _check_tensors({"query": query, "key": key, "value": value}, optional)
    _check_floating(
        query=query, key=key, value=value, own_value=own_value, query_scale=query_scale, value_scale=value_scale
    )
    _check_strength(strength)
    device = query.device.type
    if reference.has_autocast(device) and torch.is_autocast_enabled(device):
        # Autocast does the same for scaled_dot_product_attention.
        dtype = torch.get_autocast_dtype(device)
        own_value = own_value if own_value is None or own_value is value else own_value.to(dtype)
        query, key, value, given = query.to(dtype), key.to(dtype), value.to(dtype), value
        own_value = value if own_value is given else own_value
    _check_attention(query, key, value, enable_gqa)
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal=True exclude each other: put causality into the mask")
    if attn_mask is not None and attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise TypeError(f"attn_mask must be boolean or floating-point, got {attn_mask.dtype}")
    if attn_mask is not None:
        # Stock attention wants two dimensions, and no other dtypes than these.
        if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
            attn_mask = attn_mask.to(query.dtype)
        attn_mask = torch.atleast_2d(attn_mask)
        _check_broadcast("attn_mask", attn_mask, (*query.shape[:-1], key.shape[-2]))
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p}")
    if sliding_window is not None and (isinstance(sliding_window, bool) or not isinstance(sliding_window, int)):
        raise TypeError(f"sliding_window must be an integer, got {sliding_window!r}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1 (the token itself), got {sliding_window}")
    sequence = None
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, query, key)
        # The packed sequence of each token is the last that begins at or before it.
        place = torch.arange(query.shape[-2], device=query.device)
        sequence = torch.searchsorted(cu_seqlens.to(place.dtype), place, right=True).expand(*query.shape[:-3], -1)
    if not exclusive:
        for name, argument in (("own_value", own_value), ("strength", strength)):
            if argument is not None:
                raise ValueError(f"{name} is given but exclusive is False: it would be ignored")
    elif own_value is None:
        if query.shape[-2] != key.shape[-2]:
            raise ValueError(
                f"exclusive attention of {query.shape[-2]} queries over {key.shape[-2]} keys needs own_value: the "
                "values of the query tokens themselves (cross-attention has none and cannot be exclusive)"
            )
        own_value = value
    else:
        _check_own_value((*query.shape[:-1], value.shape[-1]), query.dtype, own_value)
    return Call(
        query=query,
        key=key,
        value=value,
        own_value=own_value,
        strength=_expand_strength(strength, query),
        query_scale=None if query_scale is None else _check_broadcast("query_scale", query_scale, query.shape[:-1]),
        value_scale=None if value_scale is None else _check_broadcast("value_scale", value_scale, value.shape[:-1]),
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        sliding_window=sliding_window,
        sequence=sequence,
    )


def _check_cu_seqlens(cu_seqlens: Tensor, query: Tensor, key: Tensor) -> None:
    expected = "cu_seqlens must be integers [N + 1], where each of N packed sequences begins and the last one ends"
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{expected}; got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}")
    if math.prod(query.shape[:-3]) != 1 or query.shape[-2] != key.shape[-2]:
        raise ValueError(
            "cu_seqlens packs all sequences into one: the batch must be 1 and queries and keys the same tokens; got "
            f"query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
    rises = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == query.shape[-2]) & (cu_seqlens.diff() >= 0).all()
    expected += f", rising from 0 to the {query.shape[-2]} tokens"
    if cu_seqlens.is_cpu and not is_watched() and is_plain(cu_seqlens):
        if not rises:
            raise ValueError(f"{expected}; got {cu_seqlens.tolist()}")
    else:
        torch._assert_async(rises, expected)  # without waiting for a GPU


def inverse_temperature(
    features: Tensor,
    weight: Tensor,
    *,
    position: Tensor | None = None,
    position_logit: Tensor | None = None,
    position_form: PositionForm = "sigmoid",
) -> Tensor:
    """Selective self-attention's inverse temperature: it multiplies, so a higher τ makes a spikier row.

        τ = tanh(w · GELU(x)) + 1 + c(a) log n,    c(a) = σ(a) or exp(−exp a)

    A chain of PyTorch operators, which ``torch.compile`` fuses.

    Args:
        features: x ``[..., H, T, D]``: each head's query, key or value before rotary embedding and norm
            (``token="shared"``), or features of their own (``token="mlp"``).
        weight: w ``[H, D]``, or ``[1, D]`` for one that all heads share.
        position: n ``[..., T]``, the 1-based position of each token within its own sequence.
        position_logit: a ``[H]`` or ``[1]``; ``None``: without the log n term.
        position_form: c: ``"sigmoid"`` or ``"double_exponential"``.

    Returns:
        τ ``[..., H, T]`` in float32 (float64 for float64): near 1 it does not fit into fewer bits.

    Raises:
        ValueError: shapes that do not fit, one of ``position`` and ``position_logit`` without the other, or an unknown
            ``position_form``.
        TypeError: ``features`` or ``weight`` that are not floating-point.

    Source: Zhang et al., NeurIPS 2024, arXiv:2411.12892, Definition 1 and Section 3; the double exponential is the
    authors' code, see :class:`exsel.SelectiveConfig`.
    """
    _check_tensors({"features": features, "weight": weight}, {"position": position, "position_logit": position_logit})
    _check_floating(features=features, weight=weight, position_logit=position_logit)
    if features.ndim < 3 or weight.ndim != 2 or weight.shape[1] != features.shape[-1]:
        raise ValueError(
            f"features must be [..., heads, tokens, D] and weight [heads or 1, D], got {tuple(features.shape)} "
            f"and {tuple(weight.shape)}"
        )
    if weight.shape[0] not in (1, features.shape[-3]):
        raise ValueError(f"weight has {weight.shape[0]} heads, features {features.shape[-3]}")
    if (position is None) != (position_logit is None):
        raise ValueError("position and position_logit go together")
    if position is not None and position_logit is not None:
        _check_broadcast("position", position, (*features.shape[:-3], features.shape[-2]))
        if position_logit.ndim != 1 or position_logit.shape[0] not in (1, features.shape[-3]):
            raise ValueError(
                f"position_logit must be [{features.shape[-3]}] or [1], one number a head or one for all; got "
                f"{tuple(position_logit.shape)}"
            )
    if position_form not in get_args(PositionForm):
        raise ValueError(f"position_form must be one of {', '.join(get_args(PositionForm))}; got {position_form!r}")
    return reference.inverse_temperature(features, weight, position, position_logit, position_form)
