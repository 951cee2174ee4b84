"""Put mechanisms into chosen attention layers, and take them out again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from exsel.config import ExclusiveConfig, SelectiveConfig, resolve_layers
from exsel.errors import UpgradeError
from exsel.nn.mechanisms import Mechanisms
from exsel.upgrading import attention_layers, upgraded_class, wrapped_methods
from exsel.upgrading.attention_layers import Target
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgraded_class import original_class

#: A layer, and which mechanisms it gets.
Step = tuple[Target, ExclusiveConfig | None, SelectiveConfig | None]

#: After the name of the model that was upgraded: nobody finds what was upgraded under it, and so nobody takes the plain
#: one for it.
UNSAVED = ", upgraded in memory: save_pretrained it to a folder, and load it from there by exsel.from_pretrained"


def layers_of(config: ExclusiveConfig | SelectiveConfig | None, count: int) -> frozenset[int]:
    """The indices, of ``count`` layers, that ``config`` is for."""
    return frozenset() if config is None else resolve_layers(config.layers, count)


def plan(model: nn.Module, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None) -> list[Step]:
    """What goes where, before anything is touched: the layers that get one of the two, and which.

    Raises:
        UpgradeError: nothing asked for, no layer that could be upgraded, or a layer named that cannot be.
    """
    if exclusive is None and selective is None:
        raise UpgradeError("upgrade needs exclusive or selective: True, or a configuration")
    found = attention_layers.counted_layers(model)
    if not found:
        if any(type(module).__module__.startswith("exsel.") for module in model.modules()):
            raise UpgradeError(
                f"{type(model).__name__} has both mechanisms in its own code: choose them in its configuration"
            )
        raise UpgradeError(f"{type(model).__name__} has no self-attention that could be upgraded")
    layers = {
        "exclusive": layers_of(exclusive, len(found)),
        "selective": layers_of(selective, len(found)),
    }
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    steps = []
    for index, target in enumerate(found):
        for name, indices in layers.items():
            if index in indices and (reason := getattr(target, name)):
                possible = tuple(number for number, other in enumerate(found) if not getattr(other, name))
                remedy = f"leave it out with {name.capitalize()}Config(layers={possible})" if possible else "none can"
                where = f"{target.name or 'the model'} (layer {index}, {target.cls})"
                raise UpgradeError(f"{where} cannot be {name}: {reason}; {remedy}")
        chosen = (
            exclusive if index in layers["exclusive"] else None,
            selective if index in layers["selective"] else None,
        )
        if chosen[0] is not None and chosen[0].strength == "learned" and target.geometry is None:
            raise UpgradeError(f"{target.name} ({target.cls}) cannot learn its strength: its heads are not known here")
        has_parameters = chosen[1] is not None or (chosen[0] is not None and chosen[0].strength == "learned")
        if has_parameters and any(
            hasattr(part, "device_mesh") for part in model.get_submodule(target.name).parameters()
        ):
            raise UpgradeError(
                f"{target.name} is distributed already, which new parameters would not be: upgrade before fully_shard, "
                "or save the upgraded model and load it distributed"
            )
        if target.layout is not None and target.layout.output is not None and implementation == "exsel":
            raise UpgradeError(
                f"{target.name} ({target.cls}) writes its attention out, and cannot read the masks of "
                'attn_implementation="exsel": load the model with "eager"'
            )
        if any(chosen):
            steps.append((target, *chosen))
    return steps


def build_mechanisms(
    module: nn.Module, target: Target, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None
) -> Mechanisms:
    """The mechanisms of ``module``, on its device; an MLP's W' in its dtype (float32 where that is quantised)."""
    layer_index = getattr(module, "layer_idx", getattr(module, "layer_id", None))
    mechanisms = Mechanisms(
        target.geometry,
        exclusive,
        selective,
        projections={} if target.layout is None else dict(target.layout.projections),
        scales_projections=target.layout is not None and target.layout.output is not None,
        reuses_projections=target.layout is not None and target.layout.reuses_projections,
        hidden_size=target.hidden_size,
        layer_index=layer_index,
        has_window=_has_window(module),
    )
    device = next((parameter.device for parameter in module.parameters()), None)
    dtypes = (parameter.dtype for parameter in module.parameters())
    dtype = next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), None)
    if any(parameter.is_meta for parameter in mechanisms.parameters()):
        device = None  # PEFT makes an adapter that it is about to load without memory
    mechanisms.to(device=device, dtype=dtype)
    return mechanisms.train(module.training)


def _has_window(module: nn.Module) -> bool:
    is_sliding = getattr(module, "is_sliding", None)
    if isinstance(is_sliding, bool):
        return is_sliding
    names = ("sliding_window", "attention_chunk_size")
    owners = [module] if hasattr(module, "sliding_window") else [module, getattr(module, "config", None)]
    return any(getattr(owner, name, None) for owner in owners for name in names)


def insert_all(model: nn.Module, steps: Iterable[Step]) -> None:
    """Put new mechanisms into the layers of ``steps``; all that can fail comes before the first change."""
    parts = []
    for target, exclusive, selective in steps:
        module = model.get_submodule(target.name)
        _upgraded_class(module, target)
        parts.append((module, target, build_mechanisms(module, target, exclusive, selective)))
    for module, target, mechanisms in parts:
        insert(module, target, mechanisms)


def _upgraded_class(module: nn.Module, target: Target) -> Any:
    """The class that :func:`insert` gives ``module``."""
    projections = {} if target.layout is None else target.layout.projections
    output = None if target.layout is None else target.layout.output
    return upgraded_class.upgraded_class(type(module), tuple(projections.items()), output)


def insert(module: nn.Module, target: Target, child: nn.Module) -> None:
    """Have the forward pass of ``module`` go through ``child``, which begins an insertion as Mechanisms do."""
    upgraded = _upgraded_class(module, target)
    module._modules[CHILD] = child
    module.__class__ = upgraded
    wrapped_methods.remember(module)
    upgraded_class.rebind(module)


def remove(module: nn.Module) -> None:
    """The inverse of :func:`insert`."""
    cls = original_class(module)
    del module._modules[CHILD]
    module.__class__ = cls
    upgraded_class.rebind(module)
