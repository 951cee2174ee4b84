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
from exsel.kernels.operators import differentiable, fold_batch, reads_cpu, without_gradient
from exsel.reference import accumulation_dtype

#: Whether Triton can be imported.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def passes_for(x: Tensor) -> ModuleType:
    """The module with ``project`` and ``project_backward`` for tensors like x."""
    if x.is_cpu:
        return cpp if cpp.available() else passes
    if _runs_triton(x):
        from exsel.kernels import triton_passes

        return triton_passes
    return passes


def passes_in_words(x: Tensor) -> str:
    """What :func:`passes_for` chooses, without compiling anything for the answer."""
    if x.device.type == "cpu":
        return cpp.in_words()
    return "one Triton kernel" if _runs_triton(x) else "several PyTorch operators"


def _runs_triton(x: Tensor) -> bool:
    return x.is_cuda and x.dtype != torch.float64 and HAS_TRITON


def is_written_out(y: Tensor) -> bool:
    """Whether the projection of y ``[..., T, D]`` is formulas instead of an operator.

    So it is in exported programs, which do not know our operators, and for one token under a compiler: calling an
    operator takes longer than the loops that the formulas become.
    """
    # PyTorch 2.11's compiler takes is_exporting() for true wherever it traces; it reads the flag behind it as it is.
    return torch.compiler._is_exporting_flag or (torch.compiler.is_compiling() and y.shape[-2] == 1)


def exclude(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> Tensor:
    """As :func:`exsel.reference.exclude`; twice differentiable."""
    if is_written_out(y):
        return passes.forward_formula(y, own_value, strength, eps)
    alpha = None if strength is None else fold_batch(strength.to(accumulation_dtype(y.dtype)), 2)
    z: Tensor = _exclude_with_gradient(fold_batch(y, 3), fold_batch(own_value, 3), alpha, float(eps))
    return z.reshape(y.shape)


def exclude_directly(y: Tensor, own_value: Tensor, eps: float, *, tokens_first: bool = False) -> Tensor | None:
    """:func:`exclude` of strength 1 by the C++ pass with nothing around it, where :func:`is_unseen`.

    ``None`` where the pass cannot read y ``[B, H, T, D]`` (tokens first: ``[B, T, H, D]``) and own_value
    ``[B, Hkv, T, D]``, and where they do not fit each other: the caller checks them and names the fault.
    """
    if not reads_cpu(y, own_value):
        return None
    z = torch.empty_like(y)
    return z if cpp.project_one(y, own_value, eps, z, tokens_first) else None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _exclude(y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float) -> Tensor:
    z = torch.empty_like(y)
    passes_for(y).project(y, own_value, strength, eps, z)
    return z


def _exclude_backward(
    dz: Tensor, y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dy, dv, dstrength = _empty_gradients(dz, y, own_value, strength, eps)
    wanted = None if strength is None else dstrength
    passes_for(y).project_backward(dz, y, own_value, strength, eps, None, dy, dv, wanted)
    return dy, dv, dstrength


def _empty_gradients(
    dz: Tensor, y: Tensor, own_value: Tensor, strength: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dy, dv and dα, the last of no size where there is no strength."""
    shape = (y.shape[0], 0) if strength is None else y.shape[:-1]
    return torch.empty_like(y), torch.empty_like(own_value), y.new_empty(shape, dtype=accumulation_dtype(y.dtype))


def _gradients(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
    y, own_value, strength = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a second derivative
        return *passes.backward_formula(dz, y, own_value, strength, ctx.eps), None
    dy, dv, dstrength = _run_backward(dz, y, own_value, strength, ctx.eps)
    return dy, dv, None if strength is None else dstrength, None


_run_backward = without_gradient(
    "exclude_backward", _exclude_backward, _empty_gradients, "the formula of passes.py has one"
)
_exclude_with_gradient = differentiable(
    "exclude", _exclude, lambda y, own_value, strength, eps: torch.empty_like(y), _gradients, _save_inputs
)
