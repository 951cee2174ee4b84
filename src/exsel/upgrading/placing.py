"""Choose which layers of a model get which mechanisms, and insert them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from exsel.config import ExclusiveConfig, SelectiveConfig, resolve_layers
from exsel.errors import UpgradeError
from exsel.nn.mechanisms import Mechanisms
from exsel.nn.projections import Projections
from exsel.upgrading.attention_layers import Target, counted_layers
from exsel.upgrading.upgraded_class import insert, original_class, upgraded_class

#: A layer, and the mechanisms that it gets.
Step = tuple[Target, ExclusiveConfig | None, SelectiveConfig | None]


def layers_of(config: ExclusiveConfig | SelectiveConfig | None, count: int) -> frozenset[int]:
    """The indices of the layers, out of ``count``, that ``config`` selects."""
    return frozenset() if config is None else resolve_layers(config.layers, count)


def choose_layers(model: nn.Module, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None) -> list[Step]:
    """The layers that get at least one mechanism, each with its mechanisms; an UpgradeError if one cannot be had."""
    if exclusive is None and selective is None:
        raise UpgradeError("upgrade needs exclusive or selective: True, or a configuration")
    found = counted_layers(model)
    if not found:
        if any(type(module).__module__.startswith("exsel.") for module in model.modules()):
            raise UpgradeError(
                f"{type(model).__name__} has both mechanisms in its own code: choose them in its configuration"
            )
        raise UpgradeError(f"{type(model).__name__} has no self-attention that could be upgraded")
    layers = {"exclusive": layers_of(exclusive, len(found)), "selective": layers_of(selective, len(found))}
    steps = []
    for index, target in enumerate(found):
        for name, indices in layers.items():
            if index in indices and (reason := getattr(target, name)):
                possible = tuple(number for number, other in enumerate(found) if not getattr(other, name))
                remedy = f"leave it out with {name.capitalize()}Config(layers={possible})" if possible else "none can"
                where = f"{target.name or 'the model'} (layer {index}, {target.cls})"
                raise UpgradeError(f"{where} cannot be {name}: {reason}; {remedy}")
        step = (
            target,
            exclusive if index in layers["exclusive"] else None,
            selective if index in layers["selective"] else None,
        )
        if any(step[1:]):
            _check(model, *step)
            steps.append(step)
    return steps


def _check(
    model: nn.Module, target: Target, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None
) -> None:
    where = f"{target.name} ({target.cls})"
    has_learned_strength = exclusive is not None and exclusive.strength == "learned"
    if has_learned_strength and target.geometry is None:
        raise UpgradeError(f"{where} cannot learn its strength: its heads are not known here")
    parameters = model.get_submodule(target.name).parameters()
    if (selective or has_learned_strength) and any(hasattr(parameter, "device_mesh") for parameter in parameters):
        raise UpgradeError(
            f"{target.name} is distributed already, which new parameters would not be: upgrade before fully_shard, "
            "or save the upgraded model and load it distributed"
        )
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if target.projections is not None and target.projections.output is not None and implementation == "exsel":
        raise UpgradeError(
            f"{where} writes its attention out, and cannot read the masks of "
            'attn_implementation="exsel": load the model with "eager"'
        )


def build_mechanisms(
    module: nn.Module, target: Target, exclusive: ExclusiveConfig | None, selective: SelectiveConfig | None
) -> Mechanisms:
    """New mechanisms for ``module``, on its device. An MLP's W' has its dtype (float32 if that is quantised)."""
    mechanisms = Mechanisms(
        target.geometry,
        exclusive,
        selective,
        target.projections or Projections({}),
        hidden_size=target.hidden_size,
        layer_index=getattr(module, "layer_idx", getattr(module, "layer_id", None)),
        has_window=_has_window(module),
    )
    device = next((parameter.device for parameter in module.parameters()), None)
    dtypes = (parameter.dtype for parameter in module.parameters())
    dtype = next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), None)
    if any(parameter.is_meta for parameter in mechanisms.parameters()):
        device = None  # PEFT creates an adapter on the meta device before it loads the weights
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
    """Insert new mechanisms into the layers of ``steps``. Everything that can fail runs before the first change."""
    parts = []
    for target, exclusive, selective in steps:
        module = model.get_submodule(target.name)
        upgraded_class(original_class(module), target.projections)
        parts.append((module, target.projections, build_mechanisms(module, target, exclusive, selective)))
    for part in parts:
        insert(*part)
