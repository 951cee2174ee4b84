"""What an observer is shown of each attention layer, and the forward passes of a layer that show it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from exsel.diagnostics.mixing import Mixing, as_float32, mixing_of
from exsel.nn.exclusive import Exclusive
from exsel.nn.layer_pass import AttentionCall, PassObserver
from exsel.nn.projections import PACKINGS
from exsel.upgrading.attention_layers import Target

ACROSS = "it was called to attend to other tokens than its own"


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


class WatchedPass(PassObserver):
    """Collects what a layer projects and what it attends with, and shows both to an observer.

    The inverse temperatures by kind, ``tau``, are filled in by others as they are computed.
    """

    def __init__(self, layer: Layer, observer: Observer, tau: Mapping[str, Tensor]) -> None:
        self.layer, self.observer, self.tau = layer, observer, tau
        self.names: set[str] = set()
        self.states: dict[str, Projected] = {}
        self.own_value: Tensor | None = None

    def projected(
        self, name: str, packed: Tensor, module: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """Keep queries, keys and values by kind."""
        projections, geometry = self.layer.target.projections, self.layer.target.geometry
        # A layer may call a projection again, on inputs that are not its tokens.
        if name in self.names or projections is None or geometry is None:
            return
        self.names.add(name)
        packing = projections.packings[name]
        # Call forward itself: hooks on a projection expect the layer's tokens as its input.
        called = module.forward if isinstance(module, nn.Module) else module

        def apply(rows: Tensor) -> Tensor:
            return called(rows, *args, **kwargs)

        for kind, part in PACKINGS[packing].split(packed, geometry).items():
            # Vision models may have tokens in two dimensions; written-out attention may have no batch dimension.
            states = part.flatten(1, -3) if part.ndim > 3 else part.unsqueeze(0)
            self.states[kind] = Projected(apply, packing, hidden_states, states.transpose(1, 2))
        # exsel's own layers scale values before attention, and written-out attention shows only what was projected.
        is_own = type(self.layer.module).__module__.startswith("exsel.")
        if "value" in self.states and (projections.output is not None or is_own):
            self.own_value = self.states["value"].states

    def attended(self, call: AttentionCall) -> None:
        """Show a call of the attention function."""
        query, own_value = call.query, call.own_value if self.own_value is None else self.own_value
        if query.ndim != 4 or own_value.ndim != 4:
            reason = f"it attends with queries {tuple(query.shape)}: which dimension holds the heads is not known"
            self.observer.lost(self.layer, reason)
        elif query.shape[0] != own_value.shape[0] or query.shape[-2] != own_value.shape[-2]:
            self.observer.lost(self.layer, ACROSS)
        else:
            in_float32 = functools.partial(call.again, as_float32) if call.y.dtype.itemsize < 4 else None
            states = self._of_tokens(call.y, call.first_token)
            told = Attended(call.y, own_value, mixing_of(call), states, dict(self.tau), in_float32)
            self.observer.attended(self.layer, told)

    def mixed(self, y: Tensor) -> None:
        """Show attention that the layer writes out."""
        own_value = self.own_value
        if own_value is None:
            self.observer.lost(self.layer, "its own values are not seen")
        elif y.numel() % own_value[:, :1].numel():
            self.observer.lost(self.layer, ACROSS)
        else:
            batch, _, num_tokens, head_dim = own_value.shape
            y = y.reshape(batch, num_tokens, -1, head_dim).transpose(1, 2)
            told = Attended(y, own_value, None, self._of_tokens(y, 0), dict(self.tau))
            self.observer.attended(self.layer, told)

    def ended(self, *, is_done: bool) -> None:
        """Report a layer that never attended."""
        if not is_done:
            self.observer.lost(self.layer, "it took a path around its attention function")

    def _of_tokens(self, y: Tensor, first: int) -> dict[str, Projected]:
        """By kind, what was projected of the tokens of y; a kind is left out where tokens lie in another order."""
        batch, count, found = y.shape[0], y.shape[2], {}
        for kind, part in self.states.items():
            states = part.states
            if states.shape[0] != batch:
                if 1 not in (batch, states.shape[0]):
                    continue
                states = states.transpose(1, 2)
                states = states.reshape(batch, -1, *states.shape[2:]).transpose(1, 2)
            hidden_states = part.hidden_states.reshape(batch, -1, part.hidden_states.shape[-1])
            states, hidden_states = states[:, :, first : first + count], hidden_states[:, first : first + count]
            if states.shape[2] == hidden_states.shape[1] == count:
                found[kind] = replace(part, hidden_states=hidden_states, states=states)
        return found
