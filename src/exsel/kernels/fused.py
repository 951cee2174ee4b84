"""Our Triton kernels as operators: attention with both mechanisms inside, decoding, and the temperatures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exsel.kernels.call import Call
from exsel.kernels.exclude import exclude
from exsel.kernels.registration import differentiable, fold_batch, refuse_vmap, register_vmap, without_gradient
from exsel.kernels.triton import attention as forward_kernels
from exsel.kernels.triton import attention_backward as backward_kernels
from exsel.kernels.triton import decode as decode_kernels
from exsel.kernels.triton import temperature as temperature_kernels


def attention(call: Call, eps: float) -> Tensor:
    """:func:`exsel.attention` of checked arguments: the decode kernel for a few queries, else the fused one."""
    lead = call.query.shape[:-3]

    def three(x: Tensor | None) -> Tensor | None:
        return None if x is None else fold_batch(x.to(torch.float32), 2)

    query, key, value = (fold_batch(x, 3) for x in (call.query, call.key, call.value))
    strength, scales = three(call.strength), (three(call.query_scale), three(call.value_scale))
    if call.is_decode:
        own_value = None if call.own_value is None else fold_batch(call.own_value, 3)
        mask = call.attn_mask
        if mask is not None:
            mask = fold_batch(mask.expand(*call.query.shape[:-1], call.key.shape[-2]), 3)
        z: Tensor = _decode(query, key, value, own_value, strength, *scales, mask, call.scale, eps)
        return z.reshape(*lead, *z.shape[1:])
    is_own = call.own_value is call.value
    z = _attention_with_gradient(
        query,
        key,
        value,
        strength if is_own else None,
        *scales,
        call.cu_seqlens,
        is_own,
        call.is_causal,
        call.sliding_window,
        call.scale,
        eps,
    )[0]
    z = z.reshape(*lead, *z.shape[1:])
    if call.own_value is None or is_own:
        return z
    return exclude(z, call.own_value, call.strength, None, eps, "triton")


@torch.library.custom_op("exsel::triton_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    cu_seqlens: Tensor | None,
    exclusive: bool,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    z, logsumexp, along = forward_kernels.attention_forward(
        query,
        key,
        value,
        exclusive=exclusive,
        strength=strength,
        query_scale=query_scale,
        value_scale=value_scale,
        cu_seqlens=cu_seqlens,
        is_causal=is_causal,
        window=window,
        scale=scale,
        eps=eps,
    )
    return z, logsumexp, logsumexp.new_empty(z.shape[0], 0) if along is None else along


@_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    cu_seqlens: Tensor | None,
    exclusive: bool,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, tokens, head_dim = query.shape
    z = query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    logsumexp = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    return z, logsumexp, torch.empty_like(logsumexp) if exclusive else logsumexp.new_empty(batch, 0)


@torch.library.custom_op("exsel::triton_attention_backward", mutates_args=())
def _attention_backward(
    dz: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    cu_seqlens: Tensor | None,
    z: Tensor,
    logsumexp: Tensor,
    along: Tensor,
    exclusive: bool,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, *rest = backward_kernels.attention_backward(
        dz,
        query,
        key,
        value,
        z,
        logsumexp,
        along if exclusive else None,
        exclusive=exclusive,
        strength=strength,
        query_scale=query_scale,
        value_scale=value_scale,
        cu_seqlens=cu_seqlens,
        is_causal=is_causal,
        window=window,
        scale=scale,
        eps=eps,
    )
    absent = logsumexp.new_empty(z.shape[0], 0)
    dstrength, dquery_scale, dvalue_scale = (absent.clone() if x is None else x for x in rest)
    return dq, dk, dv, dstrength, dquery_scale, dvalue_scale


@_attention_backward.register_fake
def _(
    dz: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    cu_seqlens: Tensor | None,
    z: Tensor,
    logsumexp: Tensor,
    along: Tensor,
    exclusive: bool,
    is_causal: bool,
    window: int | None,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def by_token(x: Tensor, given: Tensor | None) -> Tensor:
        shape = (x.shape[0], 0) if given is None else x.shape[:-1]
        return x.new_empty(shape, dtype=torch.float32)

    return (
        torch.empty_like(query),
        torch.empty_like(key),
        torch.empty_like(value),
        by_token(query, strength),
        by_token(query, query_scale),
        by_token(value, value_scale),
    )


refuse_vmap(_attention, "its fused kernel takes one batch dimension; use backend='sdpa', or pass the batch as such")
refuse_vmap(_attention_backward, "use backend='sdpa'")
_run_backward = without_gradient(_attention_backward, "a second derivative needs backend='reference'")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.options = inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dz is None:
        return (None,) * 12
    saved = ctx.saved_tensors
    dq, dk, dv, *rest = _run_backward(dz, *saved, *ctx.options)
    by_token = (None if given is None else found for given, found in zip(saved[3:6], rest, strict=True))
    return dq, dk, dv, *by_token, None, None, None, None, None, None


_attention_with_gradient = differentiable(_attention, _gradients, _save)


@torch.library.custom_op("exsel::triton_decode", mutates_args=())
def _decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    attn_mask: Tensor | None,
    scale: float,
    eps: float,
) -> Tensor:
    return decode_kernels.decode(
        query,
        key,
        value,
        own_value,
        strength=strength,
        query_scale=query_scale,
        value_scale=value_scale,
        attn_mask=attn_mask,
        scale=scale,
        eps=eps,
    )


@_decode.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_value: Tensor | None,
    strength: Tensor | None,
    query_scale: Tensor | None,
    value_scale: Tensor | None,
    attn_mask: Tensor | None,
    scale: float,
    eps: float,
) -> Tensor:
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


register_vmap(_decode)


def inverse_temperature(
    features: Tensor, weight: Tensor, position: Tensor | None, position_logit: Tensor | None
) -> Tensor:
    """As :func:`exsel.reference.inverse_temperature`, in one pass over the features forward and one backward."""
    lead = features.shape[:-3]
    if position is not None:
        position = fold_batch(position.expand(*lead, features.shape[-2]), 1)
    tau: Tensor = _inverse_temperature_with_gradient(fold_batch(features, 3), weight, position, position_logit)
    return tau.reshape(*lead, *tau.shape[1:])


@torch.library.custom_op("exsel::triton_inverse_temperature", mutates_args=())
def _inverse_temperature(
    features: Tensor, weight: Tensor, position: Tensor | None, position_logit: Tensor | None
) -> Tensor:
    return temperature_kernels.inverse_temperature(features, weight, position, position_logit)


@_inverse_temperature.register_fake
def _(features: Tensor, weight: Tensor, position: Tensor | None, position_logit: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("exsel::triton_inverse_temperature_backward", mutates_args=())
def _inverse_temperature_backward(
    dtau: Tensor, features: Tensor, weight: Tensor, position: Tensor | None, position_logit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dfeatures, dweight, dlogit = temperature_kernels.inverse_temperature_backward(
        dtau, features, weight, position, position_logit
    )
    return dfeatures, dweight, weight.new_empty(0) if dlogit is None else dlogit


@_inverse_temperature_backward.register_fake
def _(
    dtau: Tensor, features: Tensor, weight: Tensor, position: Tensor | None, position_logit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dlogit = weight.new_empty(0) if position_logit is None else torch.empty_like(position_logit)
    return torch.empty_like(features), torch.empty_like(weight), dlogit


refuse_vmap(_inverse_temperature, "use backend='auto', whose chain of operators can be")
refuse_vmap(_inverse_temperature_backward, "use backend='auto', whose chain of operators can be")
_run_temperature_backward = without_gradient(
    _inverse_temperature_backward, "a second derivative needs backend='reference'"
)


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _temperature_gradients(ctx: Any, dtau: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    dfeatures, dweight, dlogit = _run_temperature_backward(dtau, *saved)
    return dfeatures, dweight, None, None if saved[3] is None else dlogit


_inverse_temperature_with_gradient = differentiable(_inverse_temperature, _temperature_gradients, _save_features)
