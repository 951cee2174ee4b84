"""The parameters that the mechanisms have in a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from exsel.nn import Exclusive, Temperature


def scalar_names(model: nn.Module) -> set[str]:
    """The names of the mechanisms' per-head parameters: w or u, a, γ (not an MLP temperature's matrix W')."""
    return {
        f"{prefix}.{name}" for prefix, module in _parts(model) for name, _ in module.named_parameters(recurse=False)
    }


def mechanism_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All of the mechanisms' parameters, by name."""
    return {f"{prefix}.{name}": value for prefix, module in _parts(model) for name, value in module.named_parameters()}


def mechanism_names(model: nn.Module) -> set[str]:
    """The names of all that the mechanisms have in the state dict: parameters and buffers."""
    names = {f"{prefix}.{name}" for prefix, module in _parts(model) for name in module.state_dict()}
    return {*names, "model.token_log_frequency"}


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, (Exclusive, Temperature)))
