"""τ ⊙ x for each head: in one pass forward and one backward where C++ passes are, else as PyTorch has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exsel.kernels import cpp
from exsel.kernels.passes import accumulation_dtype
from exsel.kernels.registration import differentiable, fold_batch, register_vmap

#: Numbers in a tensor that PyTorch scales before our operator is called (one core of a Xeon, float32).
_SMALL = 1 << 14


def scale_heads(x: Tensor, tau: Tensor) -> Tensor:
    """τ ⊙ x in x's dtype: x [..., H, T, D], τ [..., H, T] in float32 (float64 for float64)."""
    is_wide = tau.dtype == accumulation_dtype(x.dtype)
    is_traced = torch.compiler.is_compiling()
    # A compiler makes one pass of this, together with what is around it; and calling ours takes a while.
    if is_traced or x.device.type != "cpu" or x.numel() <= _SMALL or not is_wide or not cpp.available():
        return (x * tau.unsqueeze(-1)).to(x.dtype)
    scaled: Tensor = _scale_with_gradient(fold_batch(x, 3), fold_batch(tau, 2))
    return scaled.reshape(x.shape)


@torch.library.custom_op("exsel::scale_heads", mutates_args=(), device_types="cpu")
def _scale(x: Tensor, tau: Tensor) -> Tensor:
    out = torch.empty_like(x)
    cpp.scale(x, tau, out)
    return out


@_scale.register_fake
def _(x: Tensor, tau: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("exsel::scale_heads_backward", mutates_args=(), device_types="cpu")
def _scale_backward(dout: Tensor, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    dx, dtau = torch.empty_like(x), torch.empty_like(tau)
    cpp.scale_backward(dout, x, tau, dx, dtau)
    return dx, dtau


@_scale_backward.register_fake
def _(dout: Tensor, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(tau)


register_vmap(_scale)
register_vmap(_scale_backward)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
    x, tau = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a second derivative
        return (dout * tau.unsqueeze(-1)).to(x.dtype), (dout * x.to(tau.dtype)).sum(-1)
    dx, dtau = _scale_backward(dout, x, tau)
    return dx, dtau


_scale_with_gradient = differentiable(_scale, _gradients, _save)
