"""What follows the forward pass of a training step, for those that time one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def training_step(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """Backward, clipping and the optimiser, as ``exsel train`` does them; returns the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
