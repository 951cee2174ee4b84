"""PyTorch's own attention kernels, with their softmax's log-sum-exp, and the backward of the one that ran.

Without dropout. Shapes: query [B, H, T, D], key and value [B, Hkv, S, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """``scaled_dot_product_attention``, with grouped heads where the numbers of heads differ."""
    # A comparison alone would be a symbol under dynamic shapes, which enable_gqa does not take.
    enable_gqa = True if query.shape[-3] != key.shape[-3] else False  # noqa: SIM210
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def choose_kernel(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
) -> str:
    """The kernel that ``scaled_dot_product_attention`` would run: flash_cpu, flash, efficient, cudnn or math."""
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


def forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """y, and what the kernel's own backward wants of its softmax.

    The latter's shape says which kernel ran (see :func:`_kernel_of`): the settings that choose one may differ by the
    time of the backward.
    """
    kernel = choose_kernel(query, key, value, attn_mask, is_causal, scale)
    results: tuple[Tensor, ...]
    if kernel == "math":
        y = attend(query, key, value, attn_mask, 0.0, is_causal, scale)
        return y, query.new_empty(query.shape[0], 0)
    if kernel == "flash_cpu":
        results = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )
    elif kernel == "flash":
        results = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)
    elif kernel == "cudnn":
        results = _aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, is_causal, scale=scale)
    else:
        results = _aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, is_causal, scale=scale
        )
        return results[0], results[1].unsqueeze(-1).unsqueeze(-1)
    return results[0], results[1]


def _kernel_of(logsumexp: Tensor) -> str:
    """The kernel that :func:`forward` ran: flash has [B, H, T], cuDNN [B, H, T, 1]; efficient is given two more."""
    if logsumexp.ndim == 3:
        return "flash" if logsumexp.is_cuda else "flash_cpu"
    return {2: "math", 4: "cudnn", 5: "efficient"}[logsumexp.ndim]


def backward(
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
            again = attend(q, k, v, attn_mask, 0.0, is_causal, scale)
        dq, dk, dv = torch.autograd.grad(again, (q, k, v), dy)
        return dq, dk, dv
    results: tuple[Tensor, ...]
    # Without dropout the random state is never read.
    state = torch.zeros((), dtype=torch.int64, device=query.device)
    lengths = (None, None, query.shape[2], key.shape[2])
    given = (dy, query, key, value)
    if kernel == "flash_cpu":
        results = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *given, y, logsumexp, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )
    elif kernel == "flash":
        results = _aten._scaled_dot_product_flash_attention_backward(
            *given, y, logsumexp, *lengths, 0.0, is_causal, state, state, scale=scale
        )
    elif kernel == "cudnn":
        results = _aten._scaled_dot_product_cudnn_attention_backward(
            *given, y, logsumexp, state, state, None, *lengths, 0.0, is_causal, scale=scale
        )
    else:
        logsumexp, wanted = logsumexp.squeeze(-1).squeeze(-1), [True, True, True, False]
        results = _aten._scaled_dot_product_efficient_attention_backward(
            *given, None, y, logsumexp, state, state, 0.0, wanted, is_causal, scale=scale
        )
    return results[0], results[1], results[2]
