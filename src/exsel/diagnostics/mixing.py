"""What one call of an attention function mixed with what, as the function itself was told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: What is added to the scores of hidden tokens is less than this, what else may be added is not.
HIDDEN = -9000.0

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class Mixing:
    """The inputs of softmax(cap(s·q kᵀ) + bias + mask) v.

    Args:
        query: ``[B, H, T, D]``, as it is attended with: rotated, normed and scaled by its temperature.
        key: ``[B, Hkv, S, D]``.
        value: ``[B, Hkv, S, Dv]``, scaled by its temperature.
        scaling: s.
        mask: boolean, true where a token may be attended, or added; ``[B or 1, H or 1, T or 1, S]``.
        bias: added as well, of the same shapes.
        is_causal: whether later keys are hidden, beside what the mask hides.
        softcap: of the scores.
        sinks: ``[H]``, a score of nothing for each head, which takes part in the softmax.
        window: how many tokens each sees, itself among them.
        own: in which column of the keys the first query's own is.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None = None
    bias: Tensor | None = None
    is_causal: bool = False
    softcap: float | None = None
    sinks: Tensor | None = None
    window: int | None = None
    own: int = 0


def of_attention_function(
    function: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    own: int = 0,
) -> Mixing:
    """What ``function(module, query, key, value, …)`` mixes, an attention function as transformers calls them."""
    given = inspect.signature(function).bind(module, query, key, value, *args, **kwargs).arguments | dict(kwargs)
    mask = given.get("attention_mask", given.get("attn_mask"))
    is_causal, window = False, None
    if mask is None and getattr(function, "__name__", "") != "eager_attention_forward":  # which reads its mask alone
        by_default = "attention_mask" in given and getattr(module, "is_causal", True)
        said = given.get("is_causal")
        is_causal = bool(by_default if said is None else said) and query.shape[2] > 1
        window = None if _is_sdpa(function) else given.get("sliding_window")
    scaling = given.get("scaling")
    return Mixing(
        query,
        key,
        value,
        float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        _four_dimensional(mask),
        _four_dimensional(given.get("position_bias")),
        is_causal,
        given.get("softcap"),
        None if _is_sdpa(function) else given.get("s_aux"),
        window,
        own,
    )


def of_sdpa(
    query: Tensor, key: Tensor, value: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], own: int = 0
) -> Mixing:
    """What ``scaled_dot_product_attention(query, key, value, …)`` mixes, of ``[B, H, T, D]``."""
    given = {**dict(zip(_SDPA[3:], args, strict=False)), **kwargs}
    scale = given.get("scale")
    return Mixing(
        query,
        key,
        value,
        float(query.shape[-1] ** -0.5 if scale is None else scale),
        _four_dimensional(given.get("attn_mask")),
        is_causal=bool(given.get("is_causal", False)),
        own=own,
    )


def in_float32(given: Any) -> Any:
    """Tensors in low precision as float32; everything else as it is."""
    if isinstance(given, Tensor) and given.is_floating_point() and given.dtype.itemsize < 4:
        # A low-precision minimum must hide in float32 too.
        return given.float()
    return given


def _is_sdpa(function: Callable[..., Any]) -> bool:
    return getattr(function, "__module__", "") == "transformers.integrations.sdpa_attention"


def _four_dimensional(given: Any) -> Tensor | None:
    if not isinstance(given, Tensor):
        return None
    mask: Tensor = given
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    return mask if mask.dtype == torch.bool or mask.is_floating_point() else mask.bool()
