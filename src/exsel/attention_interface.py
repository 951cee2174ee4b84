"""``attn_implementation="exsel"``: our operator behind transformers' attention interface, for any model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from exsel.functional import attention

#: The implementation's name in transformers' interfaces.
IMPLEMENTATION = "exsel"


def exsel_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
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
        query: ``[B, H, T, D]``.
        key: ``[B, Hkv, S, D]``.
        value: ``[B, Hkv, S, D]``.
        attention_mask: as :func:`transformers.masking_utils.sdpa_mask` makes it; ``None``: causal, or one query.
        dropout: dropout probability of the attention weights.
        scaling: factor of the scores.
        is_causal: whether ``attention_mask=None`` means causal.
        exclusive, strength, own_value, query_scale, value_scale: see :func:`exsel.attention`; absent: stock attention.
        **kwargs: arguments of other implementations. A sliding window is in the mask already.

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
    if is_causal and key.shape[2] > num_queries:
        # A static cache that was empty before: its later slots hold no tokens yet.
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
    z = attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=True,
        exclusive=exclusive,
        strength=strength,
        own_value=own_value,
        query_scale=query_scale,
        value_scale=value_scale,
    )
    return z.transpose(1, 2), None


# An upgraded layer passes the mechanisms to this function. Around any other it applies them itself.
exsel_attention_forward.takes_mechanisms = True  # type: ignore[attr-defined]
AttentionInterface.register(IMPLEMENTATION, exsel_attention_forward)
# Without this entry transformers passes no mask to the function.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
