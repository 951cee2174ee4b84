"""Tensor parallelism by transformers' plans: the mechanisms' parameters are divided with their heads."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

from exsel.nn import Temperature
from exsel.nn.scalars import Scalars

#: The name of :class:`HeadsParallel` in plans.
STYLE = "exsel_heads"


class HeadsParallel(TensorParallelLayer):  # type: ignore[misc]
    """The style of parameters with a row for each head: every process has the rows of its heads.

    A parameter that all heads share has one row, which every process has. The style shards parameters, not modules:
    forward passes select the rows of their heads (:meth:`exsel.nn.scalars.Scalars.of_own_heads`).
    """

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Make the parameter a ``DTensor``, before it is loaded."""
        whole = module._parameters.get(param)
        if whole is None:
            return
        placement = Replicate() if whole.shape[0] == 1 else Shard(0)
        divided = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
        module._parameters[param] = nn.Parameter(divided, requires_grad=whole.requires_grad)
        assert isinstance(module, Scalars)
        module.divide()


ALL_PARALLEL_STYLES.register(STYLE, HeadsParallel())


def heads_plan(module: nn.Module, name: str) -> dict[str, str]:
    """A plan's entries for the mechanisms in ``module``, called ``name``, in a layer whose heads are divided."""
    plan: dict[str, str] = {}
    for inner, child in module.named_modules(prefix=name):
        if isinstance(child, Scalars):
            plan |= {f"{inner}.{parameter}": STYLE for parameter, _ in child.named_parameters(recurse=False)}
        if isinstance(child, Temperature) and child.feature_proj is not None:
            plan[f"{inner}.feature_proj"] = "colwise"
    return {for_every_layer(key): style for key, style in plan.items()}


def for_every_layer(name: str) -> str:
    """A module's or parameter's name as plans have it: ``layers.3.self_attn`` → ``layers.*.self_attn``."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def are_heads_divided(plan: dict[str, str], projections: list[str]) -> bool:
    """Whether ``plan`` gives each process some heads of the attention layer with these projections."""
    styles = {plan.get(for_every_layer(name)) for name in projections}
    return bool(styles) and styles <= {"colwise", "packed_colwise"}
