"""The cache of a :class:`exsel.nn.SelfAttention` layer."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens that a :class:`SelfAttention` layer has seen; one a layer.

    With a sliding window it keeps no more than the window needs.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Append ``[B, Hkv, T, D]``; return all that the new tokens may attend to."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat((self.key, key), dim=-2), torch.cat((self.value, value), dim=-2)
        self.seen += key.shape[-2] - (0 if self.key is None else self.key.shape[-2])
        first = 0 if window is None else max(0, key.shape[-2] - (window - 1))
        self.key, self.value = key[..., first:, :], value[..., first:, :]
        return key, value
