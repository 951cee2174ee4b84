""":class:`torch.nn.MultiheadAttention` with the mechanisms in its forward pass.

PyTorch's forward pass is one function, or one kernel in inference, into which no call can be inserted. So it is
implemented again here. In inference ``TransformerEncoderLayer`` reads the layer's weights and does not call it, under
conditions; :func:`multihead_methods` makes one of them false.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exsel.nn.layer_pass import LayerPass
from exsel.nn.projections import Projections
from exsel.upgrading.rewriting import READ
from exsel.upgrading.sources import replacement

#: The projections, by the names that :func:`multihead_forward` gives them.
PROJECTIONS = Projections.read("query key value")


def multihead_refusal(cls: type) -> str:
    """Why ``cls``, a subclass of ``nn.MultiheadAttention``, cannot be upgraded; empty if it can."""
    if patch := replacement(nn.MultiheadAttention, "forward"):
        return f"the forward of nn.MultiheadAttention was replaced by {patch}: take that back first"
    if cls.forward is not nn.MultiheadAttention.forward:  # type: ignore[attr-defined]
        return f"{cls.__name__} has a forward of its own in the place of nn.MultiheadAttention's"
    return ""


def multihead_methods(cls: type) -> dict[str, Any]:
    """The members of an upgraded subclass of ``cls``, an ``nn.MultiheadAttention``.

    PyTorch reads the property only to decide whether inference may bypass :func:`multihead_forward`.
    """
    original: Any = cls.forward  # type: ignore[attr-defined]
    return {
        "forward": multihead_forward,
        "_qkv_same_embed_dim": property(lambda self: False),
        READ: {"forward": (original, original, original.__code__)},
    }


def multihead_forward(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward`` with the mechanisms; arguments, shapes and results are its own.

    With a ``key_padding_mask`` a token's position is counted over the tokens that are not padding.

    Raises:
        RuntimeError: ``key`` is not ``query`` (cross-attention has no own values), or a mask has a wrong shape.
    """
    if key is not query:
        raise RuntimeError(
            "an upgraded nn.MultiheadAttention was called with a key that is not its query: cross-attention has no own "
            "values. Pass one tensor as both, or leave this layer out with layers=…"
        )
    if query.is_nested:
        if need_weights or attn_mask is not None or key_padding_mask is not None or not self.batch_first:
            raise RuntimeError(
                "an upgraded nn.MultiheadAttention takes nested tensors with batch_first=True and need_weights=False, "
                "and without masks"
            )
        return _forward_nested(self, query, value)
    if query.ndim not in (2, 3):
        raise RuntimeError(f"query must be [T, E] or batched, with three dimensions, got {tuple(query.shape)}")
    is_batched = query.ndim == 3
    same_value = value is query
    if not is_batched:
        query, value = query.unsqueeze(0), value.unsqueeze(0)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not self.batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    if value.shape[:2] != query.shape[:2]:
        raise RuntimeError(
            f"value must have the batch and tokens of query, got {value.shape[:2]} for {query.shape[:2]}"
        )
    if is_causal and attn_mask is None:
        raise RuntimeError("is_causal is a hint about attn_mask: pass the mask too")

    use_causal_hint = is_causal and key_padding_mask is None and not need_weights
    padding = _as_bias(key_padding_mask, query.dtype)
    mask = None if use_causal_hint else _as_bias(attn_mask, query.dtype)
    # 0-based, counted over the tokens that are not padding.
    positions = None if padding is None else (padding != float("-inf")).long().cumsum(-1) - 1
    layer_pass: LayerPass = self._exsel_begin(position_ids=positions)
    heads = _project(self, layer_pass, query, query if same_value else value)
    keys, values = heads["key"], heads["value"]
    num_extra = int(self.bias_k is not None) + int(self.add_zero_attn)
    if num_extra:
        keys, values = layer_pass.update(SimpleNamespace(update=functools.partial(_extend, self)), keys, values)
    mixed, weights = layer_pass.attend(
        functools.partial(_attend, need_weights=need_weights),
        self,
        heads["query"],
        keys,
        values,
        attn_mask=_merged(mask, padding, query.shape[0], self.num_heads, query.shape[1], num_extra),
        dropout_p=self.dropout if self.training else 0.0,
        is_causal=use_causal_hint,
    )
    output = F.linear(mixed.flatten(2), self.out_proj.weight, self.out_proj.bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not is_batched:
        output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
    elif not self.batch_first:
        output = output.transpose(0, 1)
    return layer_pass.end((output, weights))  # type: ignore[no-any-return]


def _extend(module: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value ``[B, H, T, D]``, followed by the layer's learned ones and zeros, which belong to no token."""

    def extended(states: Tensor, bias: Tensor | None) -> Tensor:
        shape = (states.shape[0], states.shape[1], 1, states.shape[3])
        parts = [states]
        if bias is not None:
            parts.append(bias.to(states.dtype).reshape(1, *shape[1:]).expand(shape))
        if module.add_zero_attn:
            parts.append(states.new_zeros(shape))
        return torch.cat(parts, dim=-2)

    return extended(key, module.bias_k), extended(value, module.bias_v)


def _project(module: Any, layer_pass: LayerPass, query: Tensor, value: Tensor) -> dict[str, Tensor]:
    """Query, key and value ``[B, H, T, D]`` by name."""
    bias, sources = module.in_proj_bias, (query, query, value)
    if module.in_proj_weight is not None and value is query:
        packed = F.linear(query, module.in_proj_weight, bias).chunk(3, dim=-1)
    else:
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = separate if module.in_proj_weight is None else module.in_proj_weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        packed = tuple(map(F.linear, sources, weights, biases))
    return {
        kind: layer_pass.project(kind, lambda _, states=states: states, source)
        .unflatten(-1, (module.num_heads, module.head_dim))
        .transpose(1, 2)
        for kind, states, source in zip(PROJECTIONS.packings, packed, sources, strict=True)
    }


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """y ``[B, T, H, D]``, and the weights ``[B, H, T, S]`` after dropout, as ``nn.MultiheadAttention`` returns them."""
    if not need_weights:
        y = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal)
        return y.transpose(1, 2), None
    scores = query * math.sqrt(1 / query.shape[-1]) @ key.transpose(-2, -1)
    weights = F.dropout(F.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1), dropout_p)
    return (weights @ value).transpose(1, 2), weights


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask (True: may *not* attend) or an additive one, as the bias that is added to the scores."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    if not mask.is_floating_point():
        raise RuntimeError(f"masks of nn.MultiheadAttention are boolean or floating-point, got {mask.dtype}")
    return mask.to(dtype)


def _merged(
    mask: Tensor | None, padding: Tensor | None, batch: int, num_heads: int, num_tokens: int, num_extra: int
) -> Tensor | None:
    """The sum of both masks, ``[B or 1, H or 1, T or 1, S]``. Keys that belong to no token are never masked."""
    if mask is not None:
        per_head = (batch * num_heads, num_tokens, num_tokens)
        if mask.shape not in (per_head, per_head[1:]):
            raise RuntimeError(f"attn_mask must be {per_head[1:]} or {per_head}, got {tuple(mask.shape)}")
        mask = mask.view(-1, num_heads, *per_head[1:]) if mask.ndim == 3 else mask.view(1, 1, *mask.shape)
    if padding is not None:
        if padding.shape != (batch, num_tokens):
            raise RuntimeError(f"key_padding_mask must be {(batch, num_tokens)}, got {tuple(padding.shape)}")
        padding = padding.view(batch, 1, 1, num_tokens)
        mask = padding if mask is None else mask + padding
    return mask if mask is None or num_extra == 0 else F.pad(mask, (0, num_extra))


def _forward_nested(module: Any, query: Tensor, value: Tensor) -> tuple[Tensor, None]:
    """:func:`multihead_forward` of a nested tensor ``[B, T (ragged), E]``, into which ``TransformerEncoder`` packs."""
    lengths = [sequence.shape[0] for sequence in query.unbind()]
    padded = query.to_padded_tensor(0.0)
    padded_value = padded if value is query else value.to_padded_tensor(0.0)
    index = torch.arange(padded.shape[1], device=padded.device)
    padding = index >= torch.tensor(lengths, device=padded.device).unsqueeze(-1)
    output, _ = multihead_forward(module, padded, padded, padded_value, key_padding_mask=padding, need_weights=False)
    rows = [sequence[:length] for sequence, length in zip(output.unbind(), lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=query.layout), None
