"""The arguments of a call to :func:`exsel.attention`, checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: The most query tokens that Triton's decode kernel takes.
DECODE_TOKENS = 16


@dataclass(frozen=True)
class Call:
    """The checked arguments of :func:`exsel.attention`: what decides who can run it, and who should."""

    query: Tensor
    key: Tensor
    value: Tensor
    own_value: Tensor | None
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    sliding_window: int | None
    cu_seqlens: Tensor | None

    @property
    def is_decode(self) -> bool:
        """A few queries on a cache, nothing of which is differentiated."""
        if self.query.shape[-2] > DECODE_TOKENS or self.is_causal:
            return False
        if self.sliding_window is not None or self.cu_seqlens is not None:
            return False
        tensors = (self.query, self.key, self.value)
        return not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
