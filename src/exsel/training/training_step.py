"""The parts of a training step, for those that measure one: what a forward pass keeps, and what follows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def kept_for_backward() -> Iterator[dict[int, int]]:
    """The bytes of each storage that autograd keeps in the block for a backward pass, by the storage's address."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address must not be used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def training_step(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """Backward, clipping and the optimiser, as ``exsel train`` does them; returns the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
