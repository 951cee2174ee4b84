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

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.kernels import blocks, cpp, stock
from exsel.kernels.exclude import exclude, is_written_out, passes_for
from exsel.kernels.operators import differentiable, fold_batch, is_unseen, reads_cpu, without_gradient
from exsel.kernels.scale import scale_heads
from exsel.reference import accumulation_dtype

_LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Call:
    """The checked arguments of :func:`exsel.attention`.

    ``own_value`` is None where the output is not exclusive; ``strength`` None where it is 1, else ``[..., H, T]``, as
    ``query_scale``; ``value_scale`` is ``[..., Hkv, S]``. ``sequence`` ``[..., T]`` numbers the
    packed sequence of each token.
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
    sequence: Tensor | None

    @property
    def is_banded(self) -> bool:
        """Whether a window or packed sequences hide keys."""
        return self.sliding_window is not None or self.sequence is not None


def attention(call: Call, eps: float) -> Tensor:
    """As :func:`exsel.reference.attention`, then :func:`exsel.reference.exclude` where there is an ``own_value``.

    The mask of a call that is not :func:`in_blocks` holds its window and its packed sequences already.
    """
    query, key, value, own_value, strength = call.query, call.key, call.value, call.own_value, call.strength
    attn_mask = call.attn_mask
    if (call.query_scale is not None or call.value_scale is not None) and in_blocks(call):
        read = (query, key, value, own_value, strength, call.query_scale, call.value_scale)
        if is_unseen() and reads_cpu(*[x for x in read if x is not None]):
            return _scaled_in_blocks(call, eps)
    if call.query_scale is not None:
        query = scale_heads(query, call.query_scale.to(accumulation_dtype(query.dtype)))
    if call.value_scale is not None:
        value = scale_heads(value, call.value_scale.to(accumulation_dtype(value.dtype)))
    is_whole = own_value is not None and not is_written_out(query) and owns_stock_kernel(call)
    sequence = window = None
    if in_blocks(call):
        window = call.sliding_window
        sequence = None if call.sequence is None else fold_batch(call.sequence, 1)
    elif not is_whole:
        y = stock.attend(query, key, value, attn_mask, call.dropout_p, call.is_causal, call.scale)
        return y if own_value is None else exclude(y, own_value, strength, eps)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = fold_batch(attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2]), 3)
    own, alpha = None, None
    if is_whole and strength is not None:
        alpha = fold_batch(strength.to(accumulation_dtype(query.dtype)), 2)
    if is_whole and own_value is not None and own_value is not value:
        own = fold_batch(own_value, 3)
    folded = (fold_batch(x, 3) for x in (query, key, value))
    z: Tensor = _attention_with_gradient(
        *folded, own, alpha, attn_mask, sequence, call.is_causal, window, call.scale, eps, is_whole
    )[0].reshape(query.shape)
    return z if is_whole or own_value is None else exclude(z, own_value, strength, eps)


def _scaled_in_blocks(call: Call, eps: float) -> Tensor:
    """:func:`attention` without gradients: no backward needs the scaled queries and values, so no call keeps them."""
    wide = accumulation_dtype(call.query.dtype)

    def scalars(given: Tensor | None) -> Tensor | None:
        return None if given is None else fold_batch(given.to(wide), 2)

    y, _ = blocks.forward_in_blocks(
        fold_batch(call.query, 3),
        fold_batch(call.key, 3),
        fold_batch(call.value, 3),
        None if call.sequence is None else fold_batch(call.sequence, 1),
        call.is_causal,
        call.sliding_window,
        call.scale,
        scalars(call.query_scale),
        scalars(call.value_scale),
    )
    if call.own_value is not None:
        passes_for(y).project(y, fold_batch(call.own_value, 3), scalars(call.strength), eps, y)
    return y.reshape(call.query.shape)


def in_blocks(call: Call) -> bool:
    """Whether windows and packed sequences run by :mod:`exsel.kernels.blocks`; elsewhere they are a mask."""
    query, value = call.query, call.value
    if not call.is_banded or call.attn_mask is not None or call.dropout_p > 0 or query.device.type != "cpu":
        return False
    if torch.compiler.is_compiling():  # not tried since dynamo takes the operator without gradients
        return False
    return query.shape[-2:] == value.shape[-2:] and 0 not in query.shape


def attend_directly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    eps: float,
) -> Tensor | None:
    """Exclusive attention of strength 1 on the CPU, by the two kernels with nothing around them.

    ``None`` where something must see an operator, and where the arguments may not fit each other: the caller checks
    them and names the fault.
    """
    tensors = (query, key, value, own_value) if attn_mask is None else (query, key, value, own_value, attn_mask)
    if not (is_unseen() and reads_cpu(*tensors)) or torch.is_autocast_enabled("cpu") or not cpp.available():
        return None
    if not _fit(tuple([(x.shape, x.dtype) for x in tensors]), is_causal, enable_gqa):
        return None
    y = stock.attend(query, key, value, attn_mask, 0.0, is_causal, scale)
    is_projected = cpp.project_one(y, own_value, eps, y, tokens_first=False)
    assert is_projected
    return y


@functools.lru_cache(maxsize=256)
def _fit(kinds: tuple[tuple[tuple[int, ...], torch.dtype], ...], is_causal: bool, enable_gqa: bool) -> bool:
    """Whether tensors of these shapes and dtypes can be the tensors of :func:`attend_directly`."""
    (shape, dtype), (key, _), (value, _), (own, _), *mask = kinds
    if any(other != dtype for _, other in kinds[:4]) or dtype not in cpp.DTYPES:
        return False
    if not len(shape) == len(key) == len(own) == 4 or key != value or shape[3] != key[3] or 0 in (*shape, *value):
        return False
    batch, heads, kv_heads = shape[0], shape[1], key[1]
    if heads != kv_heads and (not enable_gqa or heads % kv_heads):
        return False
    if key[0] != batch or own != (batch, kv_heads, *shape[2:]):
        return False
    if not mask:
        return True
    (of_mask, mask_dtype), whole = mask[0], (*shape[:3], key[2])
    if is_causal or mask_dtype not in (torch.bool, dtype) or len(of_mask) != 4:
        return False
    return all(n in (1, wanted) for n, wanted in zip(of_mask, whole, strict=True))


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


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    strength: Tensor | None,
    attn_mask: Tensor | None,
    sequence: Tensor | None,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
    is_exclusive: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if window is None and sequence is None:
        y, logsumexp = stock.forward(query, key, value, attn_mask, is_causal, scale)
    else:
        y, logsumexp = blocks.forward_in_blocks(query, key, value, sequence, is_causal, window, scale)
    along = _empty_along(y, is_exclusive)
    if is_exclusive:
        passes_for(y).project(y, value if own_value is None else own_value, strength, eps, y, along)
    return y, logsumexp, along


def _empty_along(y: Tensor, is_exclusive: bool) -> Tensor:
    return y.new_empty(y.shape[:-1] if is_exclusive else (y.shape[0], 0), dtype=accumulation_dtype(y.dtype))


def _attention_shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, _, _, attn_mask, sequence, is_causal, window, scale, _, is_exclusive = inputs
    if window is None and sequence is None:
        y, logsumexp = stock.forward(query, key, value, attn_mask, is_causal, scale)
    else:
        y, logsumexp = blocks.empty_results(query, key, value)
    return y, logsumexp, _empty_along(y, is_exclusive)


def _attention_backward(
    dz: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    strength: Tensor | None,
    attn_mask: Tensor | None,
    sequence: Tensor | None,
    z: Tensor,
    logsumexp: Tensor,
    along: Tensor,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
    is_exclusive: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the gradients of an own value that is not ``value`` and of the strength, else of no size."""
    v = value if own_value is None else own_value
    down, dstrength = _empty_gradients(value, own_value, strength, along)
    if not is_exclusive:
        gradients = blocks.backward_in_blocks(dz, query, key, value, sequence, z, logsumexp, is_causal, window, scale)
        return *gradients, down, dstrength
    project_backward = passes_for(z).project_backward
    # In y's layout, since that of dz may be anything and a stock kernel would copy it.
    dy = torch.empty_like(z)
    wanted = None if own_value is None else down, None if strength is None else dstrength
    project_backward(dz, z, v, strength, eps, along, dy, *wanted)
    y = z if strength is None else _restore(z, v, strength, along, eps)
    first = dy[:, :, :1].clone() if is_causal and z.dtype in _LOW_PRECISION else None
    if first is not None:
        dy[:, :, :1] = 0
    if window is None and sequence is None:
        dq, dk, dv = stock.backward(dy, query, key, value, attn_mask, y, logsumexp, is_causal, scale)
    else:
        dq, dk, dv = blocks.backward_in_blocks(dy, query, key, value, sequence, y, logsumexp, is_causal, window, scale)
    if first is not None:
        dv[:, :, :1] += first.unflatten(1, (value.shape[1], -1)).sum(2, dtype=along.dtype)
    if own_value is None:
        # Into the stock kernel's dv: on a CPU fresh memory costs more than reading dz and z again.
        project_backward(dz, z, v, strength, eps, along, None, dv, accumulate=True)
    return dq, dk, dv, down, dstrength


def _gradient_shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dz, query, key, value, own_value, strength, attn_mask, sequence, z, logsumexp, along, is_causal, window, *_ = inputs
    if window is None and sequence is None:
        dq, dk, dv = stock.backward(dz, query, key, value, attn_mask, z, logsumexp, is_causal, 1.0)
    else:
        dq, dk, dv = blocks.empty_gradients(query, key, value)
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


_run_backward = without_gradient(
    "sdpa_attention_backward",
    _attention_backward,
    _gradient_shapes,
    "a second derivative needs backend='reference'",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.is_causal, ctx.window, ctx.scale, ctx.eps, ctx.is_exclusive = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dz is None:
        return (None,) * 12
    saved = ctx.saved_tensors
    dq, dk, dv, *own = _run_backward(dz, *saved, ctx.is_causal, ctx.window, ctx.scale, ctx.eps, ctx.is_exclusive)
    own_and_strength = (None if given is None else found for given, found in zip(saved[3:5], own, strict=True))
    return dq, dk, dv, *own_and_strength, *(None,) * 7


_attention_with_gradient = differentiable("sdpa_attention", _attention, _attention_shapes, _gradients, _save)
