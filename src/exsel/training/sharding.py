"""A model whose parameters, gradients and optimizer are divided among the processes: FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from exsel.training.processes import Processes


def shard(model: nn.Module, layers: Iterable[nn.Module], processes: Processes, device: torch.device) -> None:
    """Divide a model among the processes of each machine; machines hold copies of each other.

    So a layer is put together over the fast links inside a machine, and only gradients travel between machines, each
    process those of its part. The layers are put together one at a time.
    """
    machines = processes.count // processes.local_count
    # Of two dimensions, FSDP2 copies along the first and divides along the second.
    shape: tuple[int, ...] = (processes.count,) if machines == 1 else (machines, processes.local_count)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gathered(tensors: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Put divided tensors together, one at a time. Every process must call it; one without ``keep`` gets nothing.

    A divided tensor comes back on the CPU. One that has two names (tied weights) is one tensor again.
    """
    kept: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and id(tensor) not in seen:
            full = tensor.full_tensor().detach()
            seen[id(tensor)] = full.cpu() if keep else None
        if keep:
            kept[name] = seen.get(id(tensor), tensor)
    return kept


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds, if ``like`` is divided and of the same shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
