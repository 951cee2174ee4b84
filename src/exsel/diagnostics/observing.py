"""What an observer is shown of each attention layer in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from exsel.diagnostics.mixing import Mixing
from exsel.nn.exclusive import Exclusive
from exsel.upgrading.attention_layers import Target


@dataclass(frozen=True)
class Layer:
    """A self-attention layer that is watched."""

    index: int  #: among the model's self-attention layers, as :func:`exsel.support` counts them
    target: Target
    module: nn.Module
    has: frozenset[str]  #: the temperatures that it has: of ``query``, ``key``, ``value``


@dataclass(frozen=True)
class Projected:
    """What a layer's projection made of its tokens."""

    apply: Callable[[Tensor], Tensor]  #: the projection, ``[1, n, E]`` → ``[1, n, slots·D]``
    packing: str  #: of its output
    hidden_states: Tensor  #: ``[…, E]``, its input
    states: Tensor  #: queries, keys or values, ``[B, heads, T, D]``


@dataclass(frozen=True)
class Attended:
    """One call of a layer's attention."""

    y: Tensor  #: ``[B, H, T, D]``, attention's own output
    own_value: Tensor  #: ``[B, Hkv, T, D]``, without a temperature
    mixing: Mixing | None  #: ``None`` where the layer writes its attention out, so that its weights cannot be seen
    projected: Mapping[str, Projected]  #: by kind, where that is known
    tau: Mapping[str, Tensor]  #: by kind, the inverse temperatures ``[B, heads, T]``
    in_float32: Callable[[], Tensor] | None = None  #: of a ``y`` in low precision: of the same inputs in float32


class Observer:
    """Is shown the attention of every layer. The methods of this base class do nothing."""

    def attended(self, layer: Layer, attended: Attended) -> None:
        """A layer has attended."""

    def excluded(self, layer: Layer, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor) -> None:
        """A layer's exclusive projection has made z of y, ``[B, H, T, D]``; own_value ``[B, Hkv, T, D]``."""

    def lost(self, layer: Layer, reason: str) -> None:
        """A layer cannot be watched in this pass."""
