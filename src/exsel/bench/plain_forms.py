"""What people write by hand, as it is published: ours is measured against these."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize_form(y: Tensor, own_value: Tensor) -> Tensor:
    """Normalize, multiply, subtract: y ``[B, H, T, D]``, own_value ``[B, Hkv, T, D]``, grouped by broadcasting."""
    direction = F.normalize(own_value, dim=-1)
    if own_value.shape[1] == y.shape[1]:
        return y - (y * direction).sum(dim=-1, keepdim=True) * direction
    grouped, direction = y.unflatten(1, (own_value.shape[1], -1)), direction.unsqueeze(2)
    z: Tensor = (grouped - (grouped * direction).sum(dim=-1, keepdim=True) * direction).flatten(1, 2)
    return z


def dot_form(y: Tensor, own_value: Tensor) -> Tensor:
    """The dot product over the squared norm: no square root, and no unit vector in memory."""
    squared = (own_value * own_value).sum(dim=-1, keepdim=True).clamp_min(1e-12)
    if own_value.shape[1] == y.shape[1]:
        return y - (y * own_value).sum(dim=-1, keepdim=True) / squared * own_value
    grouped, v = y.unflatten(1, (own_value.shape[1], -1)), own_value.unsqueeze(2)
    z: Tensor = (grouped - (grouped * v).sum(dim=-1, keepdim=True) / squared.unsqueeze(2) * v).flatten(1, 2)
    return z


def scale_form(x: Tensor, tau: Tensor) -> Tensor:
    """τ ⊙ x, a scaled copy: x ``[B, H, T, D]``, τ ``[B, H, T]``."""
    return (x * tau.unsqueeze(-1)).to(x.dtype)


class PlainExclusive(nn.Module):
    """The two published lines, in the place of :class:`exsel.nn.Exclusive`."""

    def forward(self, y: Tensor, own_value: Tensor) -> Tensor:
        """z."""
        return normalize_form(y, own_value)


class PlainTemperature(nn.Module):
    """The definition operator by operator, in the place of :class:`exsel.nn.Temperature`."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.position_logit = nn.Parameter(torch.full((num_heads,), -7.4))

    def forward(self, projection: Tensor, position: Tensor, **_: Tensor | None) -> Tensor:
        """τ ``[B, H, T]``."""
        token = torch.tanh(torch.einsum("bhtd,hd->bht", F.gelu(projection), self.weight))
        growth = torch.sigmoid(self.position_logit)[None, :, None] * torch.log(position.float())[:, None, :]
        return token + 1 + growth
