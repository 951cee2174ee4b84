"""The arguments of a call to :func:`exsel.attention`, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from exsel.kernels.registration import is_forward_mode

#: The most query tokens that Triton's decode kernel takes.
DECODE_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Call:
    """The checked arguments of :func:`exsel.attention`: what decides who can run it, and who should.

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
    def is_decode(self) -> bool:
        """A few queries on a cache, nothing of which is differentiated."""
        if self.query.shape[-2] > DECODE_TOKENS or self.is_causal:
            return False
        if self.sliding_window is not None or self.cu_seqlens is not None:
            return False
        arguments = (getattr(self, field.name) for field in fields(self))
        is_recorded = any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
        return not is_forward_mode() and not (torch.is_grad_enabled() and is_recorded)
