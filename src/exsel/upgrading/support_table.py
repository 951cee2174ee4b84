"""Say what an upgrade would do to each layer of a model, without changing the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from exsel.config import ExclusiveArgument, ExclusiveConfig, SelectiveArgument, SelectiveConfig
from exsel.upgrading.attention_layers import targets
from exsel.upgrading.placing import layers_of


@dataclass(frozen=True)
class LayerSupport:
    """One attention layer, and for each mechanism "yes", "no" (not in the layers asked for) or why it cannot be."""

    index: int | None  # its number in ``layers=…``; None: it is always left alone
    name: str  # in the model, as ``named_modules`` has it
    cls: str
    exclusive: str
    selective: str


@dataclass(frozen=True)
class Support:
    """The attention layers of a model of class ``model``, in its order, and what can be done to each, as a table."""

    model: str
    layers: tuple[LayerSupport, ...]

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why :func:`exsel.upgrade` would refuse: a line for each kind of layer; empty if it would not."""
        reasons = (
            f"{layer.cls} cannot be {mechanism}: {reason}"
            for layer in self.layers
            for mechanism, reason in (("exclusive", layer.exclusive), ("selective", layer.selective))
            if layer.index is not None and reason not in ("yes", "no")
        )
        return tuple(dict.fromkeys(reasons))

    def possible_layers(self, mechanism: str) -> tuple[int, ...]:
        """The indices to pass as ``layers=…`` for ``"exclusive"`` or ``"selective"``."""
        return tuple(
            layer.index for layer in self.layers if layer.index is not None and getattr(layer, mechanism) == "yes"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.model} has no attention layer."
        rows = [("layer", "name", "class", "exclusive", "selective")]
        for layer in self.layers:
            same = layer.exclusive == layer.selective and layer.exclusive not in ("yes", "no")
            index = "-" if layer.index is None else str(layer.index)
            rows.append((index, layer.name, layer.cls, layer.exclusive, "likewise" if same else layer.selective))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
        if self.refusals:
            lines.append("An upgrade of these layers would be refused. " + "; ".join(self.refusals) + ".")
            lines += [
                f"Layers that can be {mechanism}: layers={self.possible_layers(mechanism)}"
                for mechanism in ("exclusive", "selective")
            ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def support(
    model: nn.Module,
    *,
    exclusive: ExclusiveArgument = True,
    selective: SelectiveArgument = True,
) -> Support:
    """Say what :func:`exsel.upgrade` with the same arguments would do to each attention layer; nothing is changed.

    To find how an unknown fused projection is packed, a copy of its module, without hooks, runs on random tokens.

    Args:
        model: any module, also on the meta device.
        exclusive, selective: see :func:`exsel.upgrade`.

    Returns:
        A table for people (``print``), ``.layers`` and ``.to_dict()`` for programs.

    Raises:
        UpgradeError: ``layers`` exceeds the model.
    """
    found = targets(model)
    count = sum(not target.left_alone for target in found)
    in_exclusive = layers_of(ExclusiveConfig.read(exclusive), count)
    in_selective = layers_of(SelectiveConfig.read(selective), count)
    layers, indices = [], iter(range(count))
    for target in found:
        index = None if target.left_alone else next(indices)
        answers = target.exclusive, target.selective
        if index is not None:
            answers = (
                (target.exclusive or "yes") if index in in_exclusive else "no",
                (target.selective or "yes") if index in in_selective else "no",
            )
        layers.append(LayerSupport(index, target.name, target.cls, *answers))
    return Support(type(model).__name__, tuple(layers))
