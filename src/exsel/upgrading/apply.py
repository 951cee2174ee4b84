"""Put the mechanisms into a model, and take them out again."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from exsel.config import ExclusiveConfig, SelectiveConfig, resolve_layers
from exsel.nn.insertion import Mechanisms
from exsel.upgrading import layouts_vision, multihead
from exsel.upgrading.planning import Target, original_class, targets
from exsel.upgrading.rewriting import CHILD, rewrite

Model = TypeVar("Model", bound=nn.Module)


def upgrade(
    model: Model,
    *,
    exclusive: ExclusiveConfig | bool | None = None,
    selective: SelectiveConfig | bool | None = None,
) -> Model:
    """Put either or both mechanisms into ``model``, in place."""
    if any(isinstance(module, Upgraded) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} is upgraded already: exsel.downgrade(model) it first")
    steps = plan(model, _configured(ExclusiveConfig, exclusive), _configured(SelectiveConfig, selective))
    for target, exclusive_config, selective_config in steps:
        module = model.get_submodule(target.name)
        insert(module, target, build_mechanisms(module, target, exclusive_config, selective_config))
    if "transformers.modeling_utils" in sys.modules:
        # From here on a transformers model that is this one, or holds it, is saved as what it is.
        importlib.import_module("exsel.upgrading.wrapping")
    return model


def downgrade(model: Model) -> Model:
    """Take the mechanisms out of ``model`` again, in place: its modules, classes and weights are what they were."""
    for module in list(model.modules()):
        if isinstance(module, Upgraded):
            cls = original_class(module)
            del module._modules[CHILD]
            module.__class__ = cls
    return model


class Upgraded:
    """What every upgraded attention module is beside what it was."""


def _configured(cls: type[Any], value: Any) -> Any:
    if value is True:
        return cls()
    return None if value is False else value


def plan(
    model: nn.Module, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None
) -> list[tuple[Target, ExclusiveConfig | None, SelectiveConfig | None]]:
    """What goes where, before anything is touched: the layers that get one of the two, and which.

    Raises:
        ValueError: nothing asked for, no layer that could be upgraded, or a layer named that cannot be.
    """
    if exclusive is None and selective is None:
        raise ValueError("upgrade needs exclusive or selective: True, or a configuration")
    found = [target for target in targets(model) if target.kind != "cross"]
    if not found:
        raise ValueError(f"{type(model).__name__} has no self-attention that could be upgraded")
    layers = {
        "exclusive": resolve_layers(exclusive.layers, len(found)) if exclusive else frozenset(),
        "selective": resolve_layers(selective.layers, len(found)) if selective else frozenset(),
    }
    steps = []
    for index, target in enumerate(found):
        for name, indices in layers.items():
            if index in indices and (reason := getattr(target, name)):
                raise ValueError(f"{target.name} (layer {index}) cannot be upgraded: {reason}")
        chosen = (
            exclusive if index in layers["exclusive"] else None,
            selective if index in layers["selective"] else None,
        )
        if any(chosen):
            steps.append((target, *chosen))
    return steps


@functools.cache
def _upgraded_class(cls: Any, projections: tuple[tuple[str, str], ...], output: str | None) -> type[Any]:
    methods = multihead.METHODS if issubclass(cls, nn.MultiheadAttention) else rewrite(cls, dict(projections), output)
    switched = {name: property(_returning(value)) for name, value in layouts_vision.switches(cls).items()}
    described = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Upgraded, cls), {**described, **switched, **methods})


def _returning(value: bool) -> Callable[[Any], bool]:
    return lambda _: value


def build_mechanisms(
    module: nn.Module, target: Target, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None
) -> Mechanisms:
    """The mechanisms of ``module``, on its device and in its dtype (float32 where its weights are quantised)."""
    layer_index = getattr(module, "layer_idx", getattr(module, "layer_id", None))
    mechanisms = Mechanisms(
        target.geometry,
        exclusive,
        selective,
        projections={} if target.layout is None else dict(target.layout.projections),
        scales_projections=target.layout is not None and target.layout.output is not None,
        hidden_size=target.hidden_size,
        layer_index=layer_index,
    )
    device = next((parameter.device for parameter in module.parameters()), None)
    dtype = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), None)
    if any(parameter.is_meta for parameter in mechanisms.parameters()):
        device = None  # PEFT makes an adapter that it is about to load without memory
    mechanisms.to(device=device, dtype=dtype)
    return mechanisms.train(module.training)


def insert(module: nn.Module, target: Target, child: nn.Module) -> None:
    """Have the forward pass of ``module`` go through ``child``, which begins an insertion as Mechanisms do."""
    projections = {} if target.layout is None else target.layout.projections
    output = None if target.layout is None else target.layout.output
    cls: Any = type(module)
    upgraded = _upgraded_class(cls, tuple(projections.items()), output)
    module._modules[CHILD] = child
    module.__class__ = upgraded
