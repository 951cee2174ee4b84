"""Parameters of a few numbers a head: their dtype, and their division among processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from exsel.reference import accumulation_dtype


class Scalars(nn.Module):
    """A module whose own parameters are float32 in a model of any lower precision, and float64 in one of float64.

    A logit near −7.4 moves by less than half the distance of neighbouring bfloat16 numbers, 0.03, at each step of an
    optimizer: in bfloat16 it would never move. The modules inside are cast as the model is.
    """

    has_divided_heads = False

    @staticmethod
    def empty(*size: int) -> nn.Parameter:
        """A parameter without values, float32 or, where that is the default, float64."""
        return nn.Parameter(torch.empty(size, dtype=accumulation_dtype(torch.get_default_dtype())))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """PyTorch's way to change a module's tensors, behind ``to``, ``half`` and their like."""
        if recurse:
            for module in self.children():
                module._apply(fn)

        def applied(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if _is_wide(changed) else tensor.to(device=changed.device, dtype=torch.float32)

        super()._apply(applied, recurse=False)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load in float32, since loading may put the given tensors in the parameters' place."""
        for name in self._parameters:
            tensor = state_dict.get(prefix + name)
            if tensor is not None and not _is_wide(tensor):
                state_dict[prefix + name] = tensor.float()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def runs_as_written(self) -> bool:
        """Whether a call of the module is its class's ``forward`` and nothing more: no hooks, and no other forward."""
        own = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        return not (
            own
            or "forward" in self.__dict__
            or every_module._global_forward_hooks
            or every_module._global_forward_pre_hooks
            or every_module._global_backward_hooks
            or every_module._global_backward_pre_hooks
        )

    def divide(self) -> None:
        """Note that the parameters are divided with their heads; a ``DTensor`` alone does not say so."""
        self.has_divided_heads = True

    def of_own_heads(self, parameter: nn.Parameter) -> Tensor:
        """The part of a parameter that belongs to this process's heads; as it is where heads are not divided.

        A module that was told so (:meth:`divide`) has per-head parameters as ``DTensor`` divided along their first
        dimension, and what all heads share undivided; its gradient is then the sum of the processes', of which each
        sees its own heads.
        """
        divided: Any = parameter
        if not self.has_divided_heads or not hasattr(divided, "device_mesh") or divided.device_mesh.ndim != 1:
            return parameter
        (placement,) = divided.placements
        if placement.is_shard():
            own: Tensor = divided.to_local()
        else:
            from torch.distributed.tensor import Partial

            # The redistribution is the identity in the forward; in the backward it sums.
            own = divided.redistribute(placements=[placement]).to_local(grad_placements=[Partial()])
        return own

    def for_own_heads(self, states: Tensor) -> Tensor:
        """What all heads read: its gradient is the sum of the processes', of which each sees its own heads.

        Of a projection that transformers divides, its own style adds up the gradients of the input.
        """
        parameter: Any = next(self.parameters(recurse=False))
        if not self.has_divided_heads or not hasattr(parameter, "device_mesh") or parameter.device_mesh.ndim != 1:
            return states
        from torch.distributed.tensor import DTensor, Partial, Replicate

        whole = DTensor.from_local(states, parameter.device_mesh, [Replicate()], run_check=False)
        summed: Tensor = whole.to_local(grad_placements=[Partial()])
        return summed


def _is_wide(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.dtype.itemsize >= 4
