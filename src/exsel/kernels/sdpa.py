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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.kernels.call import Call
from exsel.kernels.exclude import exclude, is_traced_for_cpu, passes_for
from exsel.kernels.passes import accumulation_dtype
from exsel.kernels.registration import differentiable, fold_batch, register_vmap, without_gradient
from exsel.kernels.scale import scale_heads

aten = torch.ops.aten

LOW_PRECISION = (torch.float16, torch.bfloat16)


def attention(call: Call, eps: float) -> Tensor:
    """As :func:`exsel.reference.attention`, then :func:`exsel.reference.exclude` where there is an ``own_value``.

    Of the call neither its window nor its boundaries: they are in its mask.
    """
    query, key, value, own_value, strength = call.query, call.key, call.value, call.own_value, call.strength
    attn_mask, dropout_p, is_causal, scale = call.attn_mask, call.dropout_p, call.is_causal, call.scale
    if call.query_scale is not None:
        query = scale_heads(query, call.query_scale.to(accumulation_dtype(query.dtype)))
    if call.value_scale is not None:
        value = scale_heads(value, call.value_scale.to(accumulation_dtype(value.dtype)))
    is_plain = own_value is None or is_traced_for_cpu(query)
    if is_plain or not owns_stock_kernel(query, value, attn_mask, dropout_p):
        y = _composite(query, key, value, attn_mask, dropout_p, is_causal, scale)
        return y if own_value is None else exclude(y, own_value, strength, None, eps, "sdpa")
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        attn_mask = fold_batch(attn_mask, 3)
    if strength is not None:
        strength = fold_batch(strength.to(accumulation_dtype(query.dtype)), 2)
    own = None if own_value is value or own_value is None else fold_batch(own_value, 3)
    folded = (fold_batch(x, 3) for x in (query, key, value))
    z: Tensor = _attention_with_gradient(*folded, own, strength, attn_mask, is_causal, scale, eps)[0]
    return z.reshape(query.shape)


def owns_stock_kernel(query: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> bool:
    """Whether the operator below is used: where a stock kernel with an output and log-sum-exp is known to run."""
    if dropout_p > 0 or query.shape[-1] != value.shape[-1] or 0 in query.shape or 0 in value.shape:
        return False
    is_low = query.dtype in LOW_PRECISION
    if is_low and (attn_mask is not None or value.shape[-2] == 1):
        return False
    if query.device.type == "cpu":
        return attn_mask is None or not attn_mask.requires_grad
    return query.is_cuda and attn_mask is None and is_low and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def _stock_kernel(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
) -> str:
    """Which kernel ``scaled_dot_product_attention`` would run: flash_cpu, flash, efficient, cudnn or math."""
    if query.device.type == "cpu":
        is_dense = query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        return "flash_cpu" if is_dense and torch.backends.cuda.flash_sdp_enabled() else "math"
    choice = torch._fused_sdp_choice(
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    kernels = {"FLASH_ATTENTION": "flash", "EFFICIENT_ATTENTION": "efficient", "CUDNN_ATTENTION": "cudnn"}
    return kernels.get(torch.nn.attention.SDPBackend(choice).name, "math")


def _composite(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
) -> Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=True if query.shape[-3] != key.shape[-3] else False,  # noqa: SIM210 (a symbol where shapes are)
    )


def _stock_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """y, and what the kernel's own backward wants of its softmax.

    :func:`_kernel_of` reads from the latter's shape which kernel it was: the settings that choose one may be others by
    then.
    """
    kernel = _stock_kernel(query, key, value, attn_mask, is_causal, scale)
    results: tuple[Tensor, ...]
    if kernel == "flash_cpu":
        results = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )
    elif kernel == "flash":
        results = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)
    elif kernel == "cudnn":
        results = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, is_causal, scale=scale)
    elif kernel == "efficient":
        results = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, is_causal, scale=scale
        )
        return results[0], results[1].unsqueeze(-1).unsqueeze(-1)
    else:
        results = _composite(query, key, value, attn_mask, 0.0, is_causal, scale), query.new_empty(query.shape[0], 0)
    return results[0], results[1]


def _kernel_of(logsumexp: Tensor) -> str:
    """The kernel that :func:`_stock_forward` ran: flash has [B, H, T], cuDNN [B, H, T, 1], efficient is given two."""
    if logsumexp.ndim == 2:
        return "math"
    if logsumexp.ndim == 3:
        return "flash" if logsumexp.is_cuda else "flash_cpu"
    return "cudnn" if logsumexp.ndim == 4 else "efficient"


def _stock_backward(
    dy: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    y: Tensor,
    logsumexp: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv by the backward of the kernel that ran forward."""
    kernel = _kernel_of(logsumexp)
    if kernel == "math":
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (query, key, value))
            again = _composite(q, k, v, attn_mask, 0.0, is_causal, scale)
        dq, dk, dv = torch.autograd.grad(again, (q, k, v), dy)
        return dq, dk, dv
    results: tuple[Tensor, ...]
    if kernel == "flash_cpu":
        results = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy, query, key, value, y, logsumexp, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )
        return results[0], results[1], results[2]
    # Without dropout the random state is never read.
    state = torch.zeros((), dtype=torch.int64, device=query.device)
    if kernel == "efficient":
        results = aten._scaled_dot_product_efficient_attention_backward(
            dy,
            query,
            key,
            value,
            None,
            y,
            logsumexp.squeeze(-1).squeeze(-1),
            state,
            state,
            0.0,
            [True, True, True, False],
            is_causal,
            scale=scale,
        )
        return results[0], results[1], results[2]
    lengths = (None, None, query.shape[2], key.shape[2])
    if kernel == "flash":
        results = aten._scaled_dot_product_flash_attention_backward(
            dy, query, key, value, y, logsumexp, *lengths, 0.0, is_causal, state, state, scale=scale
        )
    else:
        results = aten._scaled_dot_product_cudnn_attention_backward(
            dy, query, key, value, y, logsumexp, state, state, None, *lengths, 0.0, is_causal, scale=scale
        )
    return results[0], results[1], results[2]


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
    y, logsumexp = _stock_forward(query, key, value, attn_mask, is_causal, scale)
    along = y.new_empty(y.shape[:-1], dtype=accumulation_dtype(y.dtype))
    v = value if own_value is None else own_value
    passes_for(y, "sdpa").project(y, v, strength, None, eps, y, along)
    return y, logsumexp, along


@_attention.register_fake
def _(
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
    y, logsumexp = _stock_forward(query, key, value, attn_mask, is_causal, scale)
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
    v = value if own_value is None else own_value
    dstrength = along.new_empty(along.shape if strength is not None else (along.shape[0], 0))
    project_backward = passes_for(z, "sdpa").project_backward
    # In y's layout and not dz's, which may be anything: a stock kernel copies what it does not like.
    dy, down = torch.empty_like(z), _empty_own_gradient(value, own_value)
    project_backward(
        dz,
        z,
        v,
        strength,
        None,
        eps,
        along,
        dy,
        None if own_value is None else down,
        None if strength is None else dstrength,
    )
    y = z if strength is None else _restore(z, v, strength, along, eps)
    first = dy[:, :, :1].clone() if is_causal and z.dtype in LOW_PRECISION else None
    if first is not None:
        dy[:, :, :1] = 0
    dq, dk, dv = _stock_backward(dy, query, key, value, attn_mask, y, logsumexp, is_causal, scale)
    if first is not None:
        dv[:, :, :1] += first.unflatten(1, (value.shape[1], -1)).sum(2, dtype=along.dtype)
    if own_value is None:
        # Into the stock kernel's dv: on a CPU fresh memory costs more than reading dz and z again.
        project_backward(dz, z, v, strength, None, eps, along, None, dv, accumulate=True)
    return dq, dk, dv, down, dstrength


@_attention_backward.register_fake
def _(
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
    dq, dk, dv = _stock_backward(dz, query, key, value, attn_mask, z, logsumexp, is_causal, scale)
    dstrength = along.new_empty(along.shape if strength is not None else (along.shape[0], 0))
    return dq, dk, dv, _empty_own_gradient(value, own_value), dstrength


def _empty_own_gradient(value: Tensor, own_value: Tensor | None) -> Tensor:
    return value.new_empty(value.shape[0], 0) if own_value is None else torch.empty_like(own_value)


def _restore(z: Tensor, own_value: Tensor, strength: Tensor | None, along: Tensor, eps: float) -> Tensor:
    """y = z + α c v̂."""
    unit = F.normalize(own_value.to(along.dtype), dim=-1, eps=eps).unsqueeze(2)
    taken = (along if strength is None else strength * along).unflatten(1, (own_value.shape[1], -1)).unsqueeze(-1)
    y: Tensor = torch.addcmul(z.to(along.dtype).unflatten(1, (own_value.shape[1], -1)), taken, unit)
    return y.flatten(1, 2).to(z.dtype)


register_vmap(_attention)
register_vmap(_attention_backward)
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
