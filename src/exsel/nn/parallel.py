"""A layer's parameters where tensor parallelism has given each process some of the heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_DIVIDED = "has_divided_heads"


def of_own_heads(module: nn.Module, parameter: nn.Parameter) -> Tensor:
    """The part of a module's parameter that belongs to this process's heads; as it is where heads are not divided.

    A module that was told so (:func:`divide`) has per-head parameters as ``DTensor`` divided along their first
    dimension, and what all heads share undivided; its gradient is then the sum of the processes', of which each sees
    its own heads.
    """
    divided: Any = parameter
    if not getattr(module, _DIVIDED, False) or not hasattr(divided, "device_mesh") or divided.device_mesh.ndim != 1:
        return parameter
    (placement,) = divided.placements
    if placement.is_shard():
        own: Tensor = divided.to_local()
    else:
        from torch.distributed.tensor import Partial

        # The redistribution changes nothing on the way forward; on the way back it sums.
        own = divided.redistribute(placements=[placement]).to_local(grad_placements=[Partial()])
    return own


def divide(module: nn.Module) -> None:
    """Say that the parameters of ``module`` are divided with their heads: a ``DTensor`` may be many other things."""
    setattr(module, _DIVIDED, True)
