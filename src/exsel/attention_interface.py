"""``attn_implementation="exsel"``: our operator behind transformers' attention interface, for any model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from exsel.functional import attention, read_call, run_call
from exsel.kernels.operators import is_watched
from exsel.nn.band import Band

#: The implementation's name in transformers' interfaces.
IMPLEMENTATION = "exsel"


def exsel_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Band | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    exclusive: bool = False,
    strength: float | Tensor | None = None,
    own_value: Tensor | None = None,
    query_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """:func:`exsel.attention` as transformers calls an attention function.

    Args:
        module: the layer; its ``is_causal`` counts if the argument is ``None``.
        query, key, value: ``[B, H, T, D]``, and twice ``[B, Hkv, S, D]``.
        attention_mask: as :func:`exsel_mask` makes it; ``None``: causal, or one query.
        dropout, scaling: dropout probability of the attention weights, factor of the scores.
        is_causal: whether ``attention_mask=None`` means causal.
        exclusive, strength, own_value, query_scale, value_scale: see :func:`exsel.attention`; absent: stock attention.
        **kwargs: arguments of other implementations. A sliding window is in ``attention_mask`` already.

    Returns:
        ``[B, T, H, D]``, and no weights.

    Raises:
        ValueError: an argument that changes the scores and that this implementation does not support.
    """
    for name in ("softcap", "position_bias", "s_aux", "cache"):
        if kwargs.get(name) is not None:
            raise ValueError(f'attn_implementation="exsel" has no {name}: choose another attn_implementation')
    num_queries = query.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = num_queries > 1 and attention_mask is None and is_causal
    band, mask = None, None if isinstance(attention_mask, Band) else attention_mask
    if isinstance(attention_mask, Band):
        first = attention_mask.first_key
        key, value = key[:, :, first:], value[:, :, first:]
        value_scale = None if value_scale is None else value_scale[..., first:]
        if key.shape[2] == num_queries and dropout == 0:
            band = attention_mask
        elif num_queries > 1:  # a single query sees all of these keys
            mask = attention_mask.mask(first)
    elif is_causal and key.shape[2] > num_queries:
        # A static cache that was empty before: its later slots hold no tokens yet.
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
    options: dict[str, Any] = {
        "dropout_p": dropout,
        "scale": scaling,
        "enable_gqa": True,
        "exclusive": exclusive,
        "strength": strength,
        "own_value": own_value,
        "query_scale": query_scale,
        "value_scale": value_scale,
    }
    if band is not None:
        call = read_call(query, key, value, is_causal=True, sliding_window=band.window, **options)
        z = run_call(replace(call, sequence=band.sequence))
    else:
        z = attention(query, key, value, attn_mask=mask, is_causal=is_causal, **options)
    return z.transpose(1, 2), None


def exsel_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | Band | None:
    """As :func:`transformers.masking_utils.sdpa_mask`, but on an eager CPU a :class:`Band` where that says the same.

    It does for causal attention in a sliding window, in packed sequences, and with padding before or after the tokens;
    on a cache that grows for a window without padding. Padding then attends to padding.
    """
    device = torch.device(device)
    stock: Callable[[], Tensor | None] = partial(
        sdpa_mask,
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask=attention_mask,
        device=device,
        **kwargs,
    )
    if is_watched() or device.type != "cpu" or isinstance(q_offset, Tensor):
        return stock()
    said = _said(mask_function)
    past = q_offset - kv_offset
    if said is None or "is_causal" not in said or past < 0 or past + q_length != kv_length:
        return stock()
    window, sequence, is_padding = said.get("window"), said.get("sequence"), None
    if window is not None and window >= kv_length:
        window = None
    if attention_mask is not None:
        is_padding = ~attention_mask[:, kv_offset : kv_offset + kv_length]
        if not is_padding.any():
            is_padding = None
        elif past > 0 or sequence is not None or is_padding.shape != (batch_size, kv_length):
            return stock()
        else:
            is_end = is_padding[:, 1:] != is_padding[:, :-1]
            # More ends than this, and padding stands between tokens.
            if (is_end.sum(-1) > 1 + is_padding[:, 0].int()).any():
                return stock()
            sequence = torch.nn.functional.pad(is_end.cumsum(-1), (1, 0))
    if window is None and sequence is None:
        return stock()
    return Band(num_queries=q_length, device=device, past=past, window=window, sequence=sequence, is_padding=is_padding)


def _said(function: Callable[..., Any]) -> dict[str, Any] | None:
    """What a mask function of transformers says, read from its closure; ``None``: it is another."""
    if function is causal_mask_function:
        return {"is_causal": True}
    code = getattr(function, "__code__", None)
    if code is None or function.__module__ != causal_mask_function.__module__:
        return None
    inside = {name: cell.cell_contents for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)}
    match function.__qualname__.partition(".")[0]:
        case "sliding_window_overlay":
            return {"window": inside["sliding_window"]}
        case "packed_sequence_mask_function":
            return {"sequence": inside["packed_sequence_mask"]}
        case "remap_positions_for_packed_sequence":  # within a sequence distances stay the same
            return _said(inside["mask_function"])
        case "and_masks":
            merged: dict[str, Any] = {}
            for part in map(_said, inside["mask_functions"]):
                if part is None or merged.keys() & part.keys():
                    return None
                merged |= part
            return merged
    return None


# An upgraded layer passes the mechanisms to this function. Around any other it applies them itself.
exsel_attention_forward.takes_mechanisms = True  # type: ignore[attr-defined]
AttentionInterface.register(IMPLEMENTATION, exsel_attention_forward)
# Without this entry transformers passes no mask to the function.
AttentionMaskInterface.register(IMPLEMENTATION, exsel_mask)
