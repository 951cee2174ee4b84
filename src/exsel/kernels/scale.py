"""τ ⊙ x for each head: one pass forward and one backward in C++ where that can be had, else PyTorch's operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exsel.config import PositionForm
from exsel.kernels import cpp
from exsel.kernels.operators import differentiable, fold_batch, reads_cpu, without_gradient
from exsel.reference import accumulation_dtype

#: Up to so many numbers PyTorch's operators are faster than calling ours (one core of a Xeon, float32).
_SMALL = 1 << 14


def scale_heads(x: Tensor, tau: Tensor) -> Tensor:
    """τ ⊙ x in x's dtype: x [..., H, T, D], τ [..., H, T] in float32 (float64 for float64)."""
    is_wide = tau.dtype == accumulation_dtype(x.dtype)
    # A compiler fuses the plain form with what stands around it.
    is_traced = torch.compiler.is_compiling()
    if is_traced or x.device.type != "cpu" or x.numel() <= _SMALL or not is_wide or not cpp.available():
        return (x * tau.unsqueeze(-1)).to(x.dtype)
    scaled: Tensor = _scale_with_gradient(fold_batch(x, 3), fold_batch(tau, 2))
    return scaled.reshape(x.shape)


def scale_directly(
    x: Tensor,
    features: Tensor,
    weight: Tensor,
    position: Tensor | None,
    position_logit: Tensor | None,
    position_form: PositionForm = "sigmoid",
) -> Tensor | None:
    """τ ⊙ x by one C++ pass that computes τ as :func:`exsel.reference.inverse_temperature`, where :func:`is_unseen`.

    ``None`` where the pass cannot read the tensors, and where they do not fit each other: x ``[B, H, T, D]``, features
    ``[B, T, H, F]``, weight ``[H or 1, F]``, position int64 ``[B or 1, T]``, position_logit ``[H or 1]``.
    """
    # position_logit is a parameter of the module that has the weight, and is like it.
    if position is None:
        if position_logit is not None or not reads_cpu(x, features, weight):
            return None
    elif not reads_cpu(x, features, weight, position):
        return None
    return cpp.scale_by_temperature(x, features, weight, position, position_logit, position_form)


def _scale(x: Tensor, tau: Tensor) -> Tensor:
    out = torch.empty_like(x)
    cpp.scale(x, tau, out)
    return out


def _scale_backward(dout: Tensor, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    dx, dtau = _empty_gradients(dout, x, tau)
    cpp.scale_backward(dout, x, tau, dx, dtau)
    return dx, dtau


def _empty_gradients(dout: Tensor, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(tau)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
    x, tau = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a second derivative
        return (dout * tau.unsqueeze(-1)).to(x.dtype), (dout * x.to(tau.dtype)).sum(-1)
    dx, dtau = _run_backward(dout, x, tau)
    return dx, dtau


_run_backward = without_gradient(
    "scale_heads_backward", _scale_backward, _empty_gradients, "the plain form has one", dispatch_key="CPU"
)
_scale_with_gradient = differentiable(
    "scale_heads", _scale, lambda x, tau: torch.empty_like(x), _gradients, _save, dispatch_key="CPU"
)
