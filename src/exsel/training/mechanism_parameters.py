"""Which of a model's parameters the mechanisms brought."""

from __future__ import annotations

from torch import nn

from exsel.nn import Exclusive, Temperature


def scalar_names(model: nn.Module) -> set[str]:
    """The names of the mechanisms' per-head parameters: w or u, a, γ (of an MLP temperature not its matrix W')."""
    return {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, (Temperature, Exclusive))
        for name, _ in module.named_parameters(recurse=False)
    }


def mechanism_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All of the mechanisms' parameters, by name."""
    return {
        f"{module_name}.{name}": parameter
        for module_name, module in model.named_modules()
        if isinstance(module, (Exclusive, Temperature))
        for name, parameter in module.named_parameters()
    }


def mechanism_names(model: nn.Module) -> set[str]:
    """The names of all that the mechanisms have in the state dict."""
    names = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, (Exclusive, Temperature))
        for name in module.state_dict()
    }
    return {*names, "model.token_log_frequency"}


def new_parameters(model: nn.Module) -> int:
    """How many parameters the mechanisms brought."""
    return sum(parameter.numel() for parameter in mechanism_parameters(model).values())
