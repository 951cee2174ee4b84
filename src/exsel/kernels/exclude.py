"""The projection as an operator, in whichever language suits the device.

Floor: forward reads y and v and writes z, backward reads dz, y and v and writes dy and dv, once each; 3 and 5 tensors
of the output's size (fewer with grouped heads). Only y and v are saved, which attention has saved anyway.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from exsel.kernels import cpp, passes
from exsel.kernels.passes import accumulation_dtype
from exsel.kernels.registration import differentiable, fold_batch, is_plain, is_watched, register_vmap

#: Whether Triton can be imported.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def runs_triton(x: Tensor, backend: str) -> bool:
    """Whether the passes over tensors like x are Triton's."""
    return backend == "triton" or (x.is_cuda and x.dtype != torch.float64 and HAS_TRITON)


def passes_for(x: Tensor, backend: str) -> ModuleType:
    """The module with ``project`` and ``project_backward`` for tensors like x."""
    if runs_triton(x, backend):
        from exsel.kernels.triton import project

        return project
    if x.device.type == "cpu" and cpp.available():
        return cpp
    return passes


def exclude(
    y: Tensor, own_value: Tensor, strength: Tensor | None, gate: Tensor | None, eps: float, backend: str
) -> Tensor:
    """As :func:`exsel.reference.exclude`, times ``gate``; twice differentiable."""
    if is_traced_for_cpu(y) and backend != "triton":
        traced: Tensor = _Traced.apply(y, own_value, strength, gate, float(eps))  # type: ignore[no-untyped-call]
        return traced
    dtype = accumulation_dtype(y.dtype)
    strength = None if strength is None else fold_batch(strength.to(dtype), 2)
    gate = None if gate is None else fold_batch(gate.to(dtype), 2)
    z: Tensor = _exclude_with_gradient(fold_batch(y, 3), fold_batch(own_value, 3), strength, gate, float(eps), backend)
    return z.reshape(y.shape)


def exclude_directly(y: Tensor, own_value: Tensor, eps: float) -> Tensor | None:
    """:func:`exclude` of strength 1 by the C++ pass with nothing around it, as for one token on a cache.

    ``None`` where anything is at work that must see an operator, or where y ``[B, H, T, D]`` and own_value
    ``[B, Hkv, T, D]`` do not fit each other, which is for somebody else to say.
    """
    if torch.is_grad_enabled() or is_watched() or not (is_plain(y) and is_plain(own_value)):
        return None
    if not (y.is_cpu and own_value.is_cpu and y.dtype == own_value.dtype and y.dtype in cpp.DTYPES):
        return None
    if not y.ndim == own_value.ndim == 4 or not y.numel() or not own_value.numel():
        return None
    (batches, heads, *rest), (own_batches, own_heads, *own_rest) = y.shape, own_value.shape
    if batches != own_batches or rest != own_rest or heads % own_heads or not cpp.available():
        return None
    z = torch.empty_like(y)
    cpp.project(y, own_value, None, None, eps, z)
    return z


def is_traced_for_cpu(x: Tensor) -> bool:
    """Whether a compiler is at work that will make one loop of the passes and of what stands around them on the CPU."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


class _Traced(torch.autograd.Function):
    """The passes' formulas, for a compiler to see through; an operator it could not."""

    @staticmethod
    def forward(y: Tensor, own_value: Tensor, strength: Tensor | None, gate: Tensor | None, eps: float) -> Tensor:
        return passes.forward_formula(y, own_value, strength, gate, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        y, own_value, strength, gate = ctx.saved_tensors
        return *passes.backward_formula(dz, y, own_value, strength, gate, ctx.eps), None


@torch.library.custom_op("exsel::exclude", mutates_args=())
def _exclude(
    y: Tensor, own_value: Tensor, strength: Tensor | None, gate: Tensor | None, eps: float, backend: str
) -> Tensor:
    z = torch.empty_like(y)
    passes_for(y, backend).project(y, own_value, strength, gate, eps, z, None)
    return z


@_exclude.register_fake
def _(y: Tensor, own_value: Tensor, strength: Tensor | None, gate: Tensor | None, eps: float, backend: str) -> Tensor:
    return torch.empty_like(y)


@torch.library.custom_op("exsel::exclude_backward", mutates_args=())
def _exclude_backward(
    dz: Tensor,
    y: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    gate: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy, dv, dstrength, dgate = _empty_gradients(dz, y, own_value, strength, gate, eps, backend)
    passes_for(y, backend).project_backward(
        dz,
        y,
        own_value,
        strength,
        gate,
        eps,
        None,
        dy,
        dv,
        None if strength is None else dstrength,
        None if gate is None else dgate,
    )
    return dy, dv, dstrength, dgate


@_exclude_backward.register_fake
def _empty_gradients(
    dz: Tensor,
    y: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    gate: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dy, dv, dα and dg; the last two of no size where there is no strength or gate."""

    def by_token(given: Tensor | None) -> Tensor:
        shape = (y.shape[0], 0) if given is None else y.shape[:-1]
        return y.new_empty(shape, dtype=accumulation_dtype(y.dtype))

    return torch.empty_like(y), torch.empty_like(own_value), by_token(strength), by_token(gate)


register_vmap(_exclude)
register_vmap(_exclude_backward)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
    y, own_value, strength, gate = ctx.saved_tensors
    dy, dv, dstrength, dgate = _exclude_backward_with_gradient(dz, y, own_value, strength, gate, ctx.eps, ctx.backend)
    return dy, dv, None if strength is None else dstrength, None if gate is None else dgate, None, None


def _second_gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """By PyTorch's own derivative of the backward's formula."""
    inputs = ctx.saved_tensors
    present = [x for x in inputs if x is not None]

    def formula(*given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        dz, y, own_value, strength, gate = (None if x is None else next(left) for x in inputs)
        assert dz is not None
        assert y is not None
        assert own_value is not None
        results = passes.backward_formula(dz, y, own_value, strength, gate, ctx.eps)
        return tuple(x for x in results if x is not None)

    has_gradient = (True, True, inputs[3] is not None, inputs[4] is not None)
    cotangents = tuple(gradient for gradient, has in zip(gradients, has_gradient, strict=True) if has)
    found = iter(torch.func.vjp(formula, *present)[1](cotangents))
    return *(None if x is None else next(found) for x in inputs), None, None


_exclude_with_gradient = differentiable(_exclude, _gradients, _save_inputs)
_exclude_backward_with_gradient = differentiable(_exclude_backward, _second_gradients, _save_inputs)
