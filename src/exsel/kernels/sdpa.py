"""PyTorch's own attention kernels, with the projection in place on what they return.

The exclusive operator owns the stock forward and backward, so that y never needs to be kept: z takes its memory, and
is saved anyway by the output projection that follows. A flash backward reads its output only for δ = rowsum(dy ∘ y),
and since P = I − α v̂v̂ᵀ is symmetric dy·y = dz·z, and for α = 1 dy·z too: z stands in y's place. For other strengths
y = z + α c v̂ is rebuilt. What is saved beyond plain attention is c = y·v̂, one number a token and head.

In low precision dy is rounded, which leaves some r v̂ in it, and then dy·y = dy·z + r c. That r c is no larger than what
rounding y or z costs δ in any case, with one exception: in a row of one key y = v to the bit, dP − δ = 0 exactly, and
nothing but r c would be left. Where a mask may make such rows stock attention keeps its y, and the projection follows
it; the first row of a causal call does without the kernel (its dq is 0, its dv is dy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.kernels import stock
from exsel.kernels.exclude import exclude, is_traced_for_cpu, passes_for
from exsel.kernels.operators import differentiable, fold_batch, without_gradient
from exsel.kernels.scale import scale_heads
from exsel.reference import accumulation_dtype

_LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Call:
    """The checked arguments of :func:`exsel.attention`.

    ``own_value`` is None where the output is not exclusive; ``strength`` None where it is 1, else ``[..., H, T]``, as
    ``query_scale``; ``value_scale`` is ``[..., Hkv, S]``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    own_value: Tensor | None
    strength: Tensor | None
    query_scale: Tensor | None
    value_scale: Tensor | None
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float
    sliding_window: int | None
    cu_seqlens: Tensor | None

    @property
    def is_banded(self) -> bool:
        """Whether a window or packed sequences hide keys."""
        return self.sliding_window is not None or self.cu_seqlens is not None


def attention(call: Call, eps: float) -> Tensor:
    """As :func:`exsel.reference.attention`, then :func:`exsel.reference.exclude` where there is an ``own_value``.

    The mask of the call holds its window and its packed sequences already.
    """
    query, key, value, own_value, strength = call.query, call.key, call.value, call.own_value, call.strength
    attn_mask = call.attn_mask
    if call.query_scale is not None:
        query = scale_heads(query, call.query_scale.to(accumulation_dtype(query.dtype)))
    if call.value_scale is not None:
        value = scale_heads(value, call.value_scale.to(accumulation_dtype(value.dtype)))
    if own_value is None or is_traced_for_cpu(query) or not owns_stock_kernel(call):
        y = stock.attend(query, key, value, attn_mask, call.dropout_p, call.is_causal, call.scale)
        return y if own_value is None else exclude(y, own_value, strength, eps)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = fold_batch(attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2]), 3)
    if strength is not None:
        strength = fold_batch(strength.to(accumulation_dtype(query.dtype)), 2)
    own = None if own_value is value else fold_batch(own_value, 3)
    folded = (fold_batch(x, 3) for x in (query, key, value))
    z: Tensor = _attention_with_gradient(*folded, own, strength, attn_mask, call.is_causal, call.scale, eps)[0]
    return z.reshape(query.shape)


def owns_stock_kernel(call: Call) -> bool:
    """Whether the operator below is used: where a stock kernel with an output and log-sum-exp is known to run."""
    query, value, attn_mask = call.query, call.value, call.attn_mask
    if call.dropout_p > 0 or query.shape[-1] != value.shape[-1] or 0 in query.shape or 0 in value.shape:
        return False
    is_low, is_masked = query.dtype in _LOW_PRECISION, attn_mask is not None or call.is_banded
    if is_low and (is_masked or value.shape[-2] == 1):
        return False
    if query.device.type == "cpu":
        return attn_mask is None or not attn_mask.requires_grad
    return query.is_cuda and not is_masked and is_low and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


@torch.library.custom_op("exsel::sdpa_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    strength: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y, logsumexp = stock.forward(query, key, value, attn_mask, is_causal, scale)
    along = y.new_empty(y.shape[:-1], dtype=accumulation_dtype(y.dtype))
    passes_for(y).project(y, value if own_value is None else own_value, strength, eps, y, along)
    return y, logsumexp, along


@_attention.register_fake
def _attention_shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, _, _, attn_mask, is_causal, scale, _ = inputs
    y, logsumexp = stock.forward(query, key, value, attn_mask, is_causal, scale)
    return y, logsumexp, y.new_empty(y.shape[:-1], dtype=accumulation_dtype(y.dtype))


@torch.library.custom_op("exsel::sdpa_attention_backward", mutates_args=())
def _attention_backward(
    dz: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    strength: Tensor | None,
    attn_mask: Tensor | None,
    z: Tensor,
    logsumexp: Tensor,
    along: Tensor,
    is_causal: bool,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradients of an own value that is not ``value`` and of the strength, else of no size."""
    v = value if own_value is None else own_value
    down, dstrength = _empty_gradients(value, own_value, strength, along)
    project_backward = passes_for(z).project_backward
    # In y's layout, since that of dz may be anything and a stock kernel would copy it.
    dy = torch.empty_like(z)
    wanted = None if own_value is None else down, None if strength is None else dstrength
    project_backward(dz, z, v, strength, eps, along, dy, *wanted)
    y = z if strength is None else _restore(z, v, strength, along, eps)
    first = dy[:, :, :1].clone() if is_causal and z.dtype in _LOW_PRECISION else None
    if first is not None:
        dy[:, :, :1] = 0
    dq, dk, dv = stock.backward(dy, query, key, value, attn_mask, y, logsumexp, is_causal, scale)
    if first is not None:
        dv[:, :, :1] += first.unflatten(1, (value.shape[1], -1)).sum(2, dtype=along.dtype)
    if own_value is None:
        # Into the stock kernel's dv: on a CPU fresh memory costs more than reading dz and z again.
        project_backward(dz, z, v, strength, eps, along, None, dv, accumulate=True)
    return dq, dk, dv, down, dstrength


@_attention_backward.register_fake
def _gradient_shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dz, query, key, value, own_value, strength, attn_mask, z, logsumexp, along, is_causal, scale, _ = inputs
    dq, dk, dv = stock.backward(dz, query, key, value, attn_mask, z, logsumexp, is_causal, scale)
    return dq, dk, dv, *_empty_gradients(value, own_value, strength, along)


def _empty_gradients(
    value: Tensor, own_value: Tensor | None, strength: Tensor | None, along: Tensor
) -> tuple[Tensor, Tensor]:
    down = value.new_empty(value.shape[0], 0) if own_value is None else torch.empty_like(own_value)
    return down, along.new_empty((along.shape[0], 0) if strength is None else along.shape)


def _restore(z: Tensor, own_value: Tensor, strength: Tensor, along: Tensor, eps: float) -> Tensor:
    """y = z + α c v̂."""
    unit = F.normalize(own_value.to(along.dtype), dim=-1, eps=eps).unsqueeze(2)
    taken = (strength * along).unflatten(1, (own_value.shape[1], -1)).unsqueeze(-1)
    y: Tensor = torch.addcmul(z.to(along.dtype).unflatten(1, (own_value.shape[1], -1)), taken, unit)
    return y.flatten(1, 2).to(z.dtype)


_run_backward = without_gradient(_attention_backward, "a second derivative needs backend='reference'")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.is_causal, ctx.scale, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dz is None:
        return (None,) * 9
    saved = ctx.saved_tensors
    dq, dk, dv, *own = _run_backward(dz, *saved, ctx.is_causal, ctx.scale, ctx.eps)
    own_and_strength = (None if given is None else found for given, found in zip(saved[3:5], own, strict=True))
    return dq, dk, dv, *own_and_strength, None, None, None, None


_attention_with_gradient = differentiable(_attention, _gradients, _save)
