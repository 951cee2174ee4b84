"""What servers share: the names of exsel's architectures, and the mechanisms' own weights.

A server builds a model empty, divides it among its processes, and then loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exsel.nn.scalars import Scalars


def served_architectures() -> set[str]:
    """The names of causal language models in folders of exsel's, own and upgraded."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return {"ExselForCausalLM", *(f"Upgraded{name}" for name in names if isinstance(name, str))}


def allocate(module: nn.Module, processes: int, device: Any, load: Callable[[Tensor, Tensor], None]) -> None:
    """Allocate temperatures and strengths in float32, each process those of its heads.

    Args:
        module: the model, or a part of it.
        processes: among which its heads are divided.
        device: of the weights.
        load: ``load(parameter, whole)`` copies a process's heads of a weight; the ``weight_loader`` of what is divided.

    Raises:
        ValueError: more processes than heads, or heads that they cannot divide.
    """
    for scalars in (child for child in module.modules() if isinstance(child, Scalars)):
        for name, parameter in list(scalars.named_parameters(recurse=False)):
            rows, *rest = parameter.shape
            is_divided = processes > 1 and rows > 1
            if is_divided and rows % processes:
                raise ValueError(
                    f"{processes} processes cannot divide the temperatures of {rows} heads: use fewer "
                    "(--tensor-parallel-size)"
                )
            size = (rows // processes if is_divided else rows, *rest)
            own = nn.Parameter(torch.empty(size, dtype=torch.float32, device=device), requires_grad=False)
            if is_divided:
                own.weight_loader = load  # type: ignore[attr-defined]
            setattr(scalars, name, own)
