"""A layer's insertion that shows an observer what goes through it; see :mod:`exsel.diagnostics.watching`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exsel.diagnostics import mixing
from exsel.diagnostics.mixing import Mixing
from exsel.diagnostics.observing import Attended, Layer, Observer, Projected
from exsel.nn.projections import PACKINGS

ACROSS = "it was called to attend to other tokens than its own"


class WatchedInsertion:
    """One forward pass of a watched layer: what its own insertion does, shown to the observer.

    Args:
        layer: the layer.
        observer: who is told.
        inner: the insertion that does what the layer's mechanisms do.
        tau: the inverse temperatures by kind, as they are computed.
    """

    def __init__(self, layer: Layer, observer: Observer, inner: Any, tau: Mapping[str, Tensor]) -> None:
        self.layer, self.observer = layer, observer
        self.inner = inner
        self.tau = tau
        self.projected: dict[str, Projected] = {}
        self.seen: set[str] = set()
        self.own_value: Tensor | None = None
        self.cached_value: Tensor | None = None
        self.first_token = 0
        self.is_done = False

    def project(self, name: str, module: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A projection of the layer."""

        def watched(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            packed = module(hidden_states, *args, **kwargs)
            self._keep_projected(name, functools.partial(_called, module, args, kwargs), hidden_states, packed)
            return packed

        return self.inner.project(name, watched, hidden_states, *args, **kwargs)

    def update(self, cache: Any, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Its cache."""
        self.cached_value = value
        return self.inner.update(cache, key, value, *args, **kwargs)

    def attend(
        self,
        function: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Its attention function, in transformers' convention."""
        own_value = self._own_value(value)

        def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = function(module, query, key, value, *args, **kwargs)
            if self._attends_to_own(query, own_value):

                def heads_first(result: Any) -> Tensor:
                    y: Tensor = result[0] if isinstance(result, tuple) else result
                    return y.reshape(query.shape[0], query.shape[2], query.shape[1], -1).transpose(1, 2)

                def in_float32() -> Tensor:
                    states = (states.float() for states in (query, key, value))
                    given = {name: mixing.in_float32(each) for name, each in kwargs.items()}
                    return heads_first(function(module, *states, *map(mixing.in_float32, args), **given))

                own = self._own_column(query, value)
                mixed = mixing.of_attention_function(function, module, query, key, value, args, kwargs, own)
                self._tell(heads_first(result), own_value, mixed, in_float32)
            return result

        return self.inner.attend(watched, module, query, key, value, *args, **kwargs)

    def sdpa(
        self, function: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Its attention function, PyTorch's."""
        own_value = self._own_value(value)

        def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            y = function(query, key, value, *args, **kwargs)
            self._tell_sdpa(function, y, own_value, query, key, value, args, kwargs)
            return y

        return self.inner.sdpa(watched, query, key, value, *args, **kwargs)

    def sdpa_tokens_first(
        self, function: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """:meth:`sdpa` of a function that takes and returns ``[B, T, H, D]``."""
        own_value = self._own_value(value.transpose(1, 2))

        def heads_first(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            states = (states.transpose(1, 2) for states in (query, key, value))
            y: Tensor = function(*states, *args, **kwargs)
            return y.transpose(1, 2)

        def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            y = function(query, key, value, *args, **kwargs)
            query, key, value = (states.transpose(1, 2) for states in (query, key, value))
            self._tell_sdpa(heads_first, y.transpose(1, 2), own_value, query, key, value, args, kwargs)
            return y

        return self.inner.sdpa_tokens_first(watched, query, key, value, *args, **kwargs)

    def mixed(self, y: Tensor) -> Any:
        """What comes out of an attention that is written out in the layer."""
        own_value = self.own_value
        if own_value is None or y.numel() % own_value[:, :1].numel():
            self._lose("its own values are not seen" if own_value is None else ACROSS)
        else:
            batch, _, num_tokens, head_dim = own_value.shape
            self._tell(y.reshape(batch, num_tokens, -1, head_dim).transpose(1, 2), own_value, None, None)
        return self.inner.mixed(y)

    def end(self, result: Any) -> Any:
        """What the layer returns."""
        if not self.is_done:
            self._lose("it took a path around its attention function")
        return self.inner.end(result)

    def end_mixed(self, result: Any) -> Any:
        """:meth:`end` of a layer that returns what it mixed, alone or first in a tuple."""
        if isinstance(result, tuple):
            return (self.mixed(result[0]), *result[1:])
        return self.mixed(result)

    def _keep_projected(
        self, name: str, apply: Callable[[Tensor], Tensor], hidden_states: Tensor, packed: Tensor
    ) -> None:
        projections, geometry = self.layer.target.projections, self.layer.target.geometry
        # What a layer puts through its projections later are not its tokens.
        if name in self.seen or projections is None or geometry is None:
            return
        self.seen.add(name)
        packing = projections.packings[name]
        for kind, part in PACKINGS[packing].split(packed, geometry).items():
            # A picture's tokens have two dimensions; written-out attention may have none for the batch.
            states = part.flatten(1, -3) if part.ndim > 3 else part.unsqueeze(0)
            self.projected[kind] = Projected(apply, packing, hidden_states, states.transpose(1, 2))
            if kind == "value" and (projections.output is not None or self._is_own_layer()):
                self.own_value = self.projected[kind].states

    def _is_own_layer(self) -> bool:
        # exsel's own layers scale their values before they attend.
        return type(self.layer.module).__module__.startswith("exsel.")

    def _own_value(self, value: Tensor) -> Tensor:
        """Of an attention function's values, as the layer gave them."""
        if self.own_value is not None:
            return self.own_value
        return value if self.cached_value is None else self.cached_value

    def _own_column(self, query: Tensor, value: Tensor) -> int:
        """Where the tokens' own values are among all: first, but for what a cache has held before."""
        cached = self.cached_value
        if cached is None or value.shape[-2] == query.shape[-2]:
            return 0
        comes_first = torch.equal(value[..., :1, :].to(cached.dtype), cached[..., :1, :])
        return 0 if comes_first else value.shape[-2] - query.shape[-2]

    def _attends_to_own(self, query: Tensor, own_value: Tensor) -> bool:
        if query.ndim != 4 or own_value.ndim != 4:
            self._lose(f"it attends with queries {tuple(query.shape)}: which dimension holds the heads is not known")
        elif query.shape[0] != own_value.shape[0] or query.shape[-2] != own_value.shape[-2]:
            self._lose(ACROSS)
        else:
            return True
        return False

    def _tell_sdpa(
        self,
        function: Callable[..., Any],
        y: Tensor,
        own_value: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        geometry = self.layer.target.geometry
        folded = y.shape[:1] if query.ndim == 3 and geometry is not None else None
        if folded is not None:
            assert geometry is not None
            batch = query.shape[0] // geometry.num_heads
            y, query, key, value = (states.unflatten(0, (batch, -1)) for states in (y, query, key, value))
            own_value = own_value.unflatten(0, (batch, -1)) if own_value.ndim == 3 else own_value
        if not self._attends_to_own(query, own_value):
            return

        def in_float32() -> Tensor:
            given = {name: mixing.in_float32(each) for name, each in kwargs.items()}
            states = [states.float() for states in (query, key, value)]
            if folded is not None:
                states = [each.flatten(0, 1) for each in states]
            exact: Tensor = function(*states, *map(mixing.in_float32, args), **given)
            return exact if folded is None else exact.view(y.shape)

        self._tell(y, own_value, mixing.of_sdpa(query, key, value, args, kwargs), in_float32)

    def _tell(
        self, y: Tensor, own_value: Tensor, mixed: Mixing | None, in_float32: Callable[[], Tensor] | None
    ) -> None:
        self.is_done = True
        batch, _, num_tokens, _ = y.shape
        projected = {
            kind: each
            for kind, part in self.projected.items()
            if (each := _of_tokens(part, batch, self.first_token, num_tokens)) is not None
        }
        # A layer that attends sequence by sequence does so in their order.
        self.first_token += num_tokens
        is_low = y.dtype.itemsize < 4
        told = Attended(y, own_value, mixed, projected, dict(self.tau), in_float32 if is_low else None)
        self.observer.attended(self.layer, told)

    def _lose(self, reason: str) -> None:
        self.is_done = True
        self.observer.lost(self.layer, reason)


def _called(module: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], states: Tensor) -> Tensor:
    # Hooks on a projection are others': they are to see the layer's tokens and nothing else.
    call = module.forward if isinstance(module, nn.Module) else module
    applied: Tensor = call(states, *args, **kwargs)
    return applied


def _of_tokens(part: Projected, batch: int, first: int, count: int) -> Projected | None:
    """The part of these tokens; ``None`` where what was projected is in another order."""
    states = part.states
    if states.shape[0] != batch:
        if batch != 1 and states.shape[0] != 1:
            return None
        states = states.transpose(1, 2)
        states = states.reshape(batch, -1, *states.shape[2:]).transpose(1, 2)
    states = states[:, :, first : first + count]
    hidden_states = part.hidden_states.reshape(states.shape[0], -1, part.hidden_states.shape[-1])
    hidden_states = hidden_states[:, first : first + count]
    if states.shape[2] != count or hidden_states.shape[1] != count:
        return None
    return Projected(part.apply, part.packing, hidden_states, states)
