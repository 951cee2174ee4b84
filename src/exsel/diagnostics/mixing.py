"""What one call of an attention function mixes, read from the call's arguments."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exsel.nn.band import Band
from exsel.nn.layer_pass import AttentionCall

#: The parameters of scaled_dot_product_attention after query, key and value.
_AFTER_VALUE = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class Mixing:
    """The inputs of softmax(cap(s·q kᵀ) + bias + mask) v.

    A mask or bias is ``[B or 1, H or 1, T or 1, S]``: boolean, true where a token may be attended to, or added to the
    scores.
    """

    query: Tensor  #: ``[B, H, T, D]``, as it is attended with: rotated, normed and scaled by its temperature
    key: Tensor  #: ``[B, Hkv, S, D]``
    value: Tensor  #: ``[B, Hkv, S, Dv]``, scaled by its temperature
    scaling: float  #: s
    mask: Tensor | None = None
    bias: Tensor | None = None
    is_causal: bool = False  #: whether later keys are hidden too
    softcap: float | None = None  #: bound of the scores, by a tanh
    sinks: Tensor | None = None  #: ``[H]``, each head's score of a key without a value, a part of the softmax
    window: int | None = None  #: how many tokens each token sees, itself among them
    own: int = 0  #: the column of the keys that belongs to the first query's token


def mixing_of(call: AttentionCall) -> Mixing:
    """What a call of an attention function mixes, as far as its arguments say."""
    function, module, query = call.function, call.module, call.query
    if module is None:
        given: dict[str, Any] = {**dict(zip(_AFTER_VALUE, call.args, strict=False)), **call.kwargs}
        mask, scaling = given.get("attn_mask"), given.get("scale")
        known: dict[str, Any] = {"is_causal": bool(given.get("is_causal", False))}
    else:
        signature = inspect.signature(function)
        given = signature.bind(module, query, call.key, call.value, *call.args, **call.kwargs).arguments
        given |= call.kwargs
        mask, scaling = given.get("attention_mask", given.get("attn_mask")), given.get("scaling")
        is_sdpa = getattr(function, "__module__", "") == "transformers.integrations.sdpa_attention"
        known = {"bias": _four_dimensional(given.get("position_bias"))}
        if not is_sdpa:  # which has neither: it refuses them, or up to transformers 5.17 attends without them
            known |= {"softcap": given.get("softcap"), "sinks": given.get("s_aux")}
        # Eager attention goes by its mask alone.
        if mask is None and getattr(function, "__name__", "") != "eager_attention_forward":
            by_default = "attention_mask" in given and getattr(module, "is_causal", True)
            said = given.get("is_causal")
            known["is_causal"] = bool(by_default if said is None else said) and query.shape[2] > 1
            known["window"] = None if is_sdpa else given.get("sliding_window")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return Mixing(query, call.key, call.value, scale, _four_dimensional(mask), own=call.own_column, **known)


def as_float32(given: Any) -> Any:
    """Tensors in low precision as float32; everything else as it is."""
    # The minimum of a low-precision dtype hides a token in float32 scores too.
    is_low = isinstance(given, Tensor) and given.is_floating_point() and given.dtype.itemsize < 4
    return given.float() if is_low else given


def _four_dimensional(given: Any) -> Tensor | None:
    if isinstance(given, Band):
        return given.mask()
    if not isinstance(given, Tensor):
        return None
    mask = given[(None,) * (4 - given.ndim)]
    return mask if mask.dtype == torch.bool or mask.is_floating_point() else mask.bool()
