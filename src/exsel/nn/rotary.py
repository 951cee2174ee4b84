"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotary position embedding: the tables of cosines and sines.

    Args:
        head_dim: D, even.
        theta: base of the wavelengths.

    Source: Su et al., "RoFormer", arXiv:2104.09864 (2021); halves rotated as in GPT-NeoX.
    """

    inverse_wavelength: Tensor

    def __init__(self, head_dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
        inverse_wavelength = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.register_buffer("inverse_wavelength", inverse_wavelength, persistent=False)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids ``[B, T]``, 0-based → cosines and sines ``[B, T, D]`` in ``dtype``."""
        angles = position_ids.unsqueeze(-1).float() * self.inverse_wavelength.float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply a rotary embedding: x ``[B, H, T, D]``, cos and sin ``[B, T, D]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
