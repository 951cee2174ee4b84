"""The one way into an attention layer: what the layer's code calls in a forward pass, and who is shown it.

The code of an upgraded layer (:mod:`exsel.upgrading`) begins each forward pass with a :class:`LayerPass` and calls its
methods in the places of its projections, its cache and its attention. :class:`LayerPass` itself changes nothing;
:class:`exsel.nn.mechanism_pass.MechanismPass` puts the mechanisms in. Either tells a :class:`PassObserver`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exsel.nn.projections import Geometry


@dataclass(frozen=True)
class AttentionCall:
    """One call of a layer's attention function.

    ``function(module, query, key, value, *args, **kwargs)`` in transformers' convention; in PyTorch's ``module`` is
    ``None``, and no argument. Query, key and value have their temperatures.
    """

    function: Callable[..., Any]
    module: nn.Module | None
    query: Tensor  # [B, H, T, D]
    key: Tensor  # [B, Hkv, S, D]
    value: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    y: Tensor  # [B, H, T, D], the function's output
    own_value: Tensor  # [B, Hkv, T, D], the tokens' own, without a temperature
    cached_value: Tensor | None  # what these became in the cache, if there is one
    first_token: int  # how many tokens the layer attended with before, in the same pass

    def again(self, convert: Callable[[Any], Any]) -> Tensor:
        """Call the function again with ``convert`` applied to each argument; return its output ``[B, H, T, D]``."""
        states = [convert(states) for states in (self.query, self.key, self.value)]
        kwargs = {name: convert(argument) for name, argument in self.kwargs.items()}
        if self.module is None:
            y: Tensor = self.function(*states, *map(convert, self.args), **kwargs)
            return y
        return _heads_first(self.function(self.module, *states, *map(convert, self.args), **kwargs), self.query)

    @property
    def own_column(self) -> int:
        """Which column of the keys belongs to the first query's token: cached tokens may stand before it."""
        cached, count = self.cached_value, self.query.shape[-2]
        if cached is None or self.value.shape[-2] == count:
            return 0
        # The free slots of a static cache that was empty are at the end.
        comes_first = torch.equal(self.value[..., :1, :].to(cached.dtype), cached[..., :1, :])
        return 0 if comes_first else self.value.shape[-2] - count


class PassObserver:
    """Observes one forward pass of a layer and changes nothing. Every method of this base class does nothing."""

    def projected(
        self, name: str, packed: Tensor, module: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """``packed`` is what projection ``name``, ``module(hidden_states, *args, **kwargs)``, has returned."""

    def attended(self, call: AttentionCall) -> None:
        """The layer has called its attention function."""

    def mixed(self, y: Tensor) -> None:
        """The layer has written out its attention; y ``[…, T, H·D]`` is the result."""

    def ended(self, *, is_done: bool) -> None:
        """The layer is about to return; ``is_done``: it has attended."""


class LayerPass:
    """One forward pass of one attention layer, which computes what it always does.

    The layer's rewritten code calls :meth:`project`, :meth:`update`, one of :meth:`attend`, :meth:`sdpa`,
    :meth:`sdpa_tokens_first` and :meth:`mixed`, and :meth:`end` or :meth:`end_mixed`. A layer that exsel wrote may keep
    its own calls and put :meth:`to_cache`, :meth:`before` and :meth:`after` around them. Subclasses replace
    :meth:`read`, :meth:`to_cache`, :meth:`before` and :meth:`exclude`. ``geometry`` tells ``[B·H, T, D]`` apart.

    Shapes: B sequences, T tokens, S keys, H query heads, Hkv key/value heads, D numbers a head.
    """

    # What a pass begins with stands in the class: an eager token's layer takes longer to set it than to compute.
    own_value: Tensor | None = None
    cached_value: Tensor | None = None
    first_token = 0
    is_done = False
    #: The projections that are read, and how each is packed.
    reads: Mapping[str, str] = {}
    geometry: Geometry | None = None
    observer: PassObserver | None = None

    def __init__(self, geometry: Geometry | None = None, observer: PassObserver | None = None) -> None:
        self.geometry = geometry
        self.observer = observer

    def project(
        self, name: str, module: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Called for ``module(hidden_states, …)``, the layer's projection ``name``: ``[…, T, E]`` → ``[…, T, n·D]``."""
        packed = module(hidden_states, *args, **kwargs)
        if self.observer is not None:
            self.observer.projected(name, packed, module, hidden_states, *args, **kwargs)
        return self.read(name, hidden_states, packed) if name in self.reads else packed

    def update(self, cache: Any, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Called for ``cache.update(key, value, …)``: ``[B, Hkv, T, D]`` → all keys and values ``[B, Hkv, S, D]``."""
        return cache.update(*self.to_cache(key, value), *args, **kwargs)

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
        """Called for ``function(module, query, key, value, …)``, an attention function of transformers' convention.

        Query ``[B, H, T, D]``, key and value ``[B, Hkv, S, D]`` → ``[B, T, H, D]`` or ``[B, T, H·D]``, alone or first
        in a tuple.
        """
        takes_mechanisms = getattr(function, "takes_mechanisms", False)
        query, key, value, options = self.before(query, key, value, takes_mechanisms)
        kwargs |= options
        result = function(module, query, key, value, *args, **kwargs)
        if self.observer is not None and self.own_value is not None:
            y, own = _heads_first(result, query), (self.own_value, self.cached_value, self.first_token)
            self.observer.attended(AttentionCall(function, module, query, key, value, args, kwargs, y, *own))
        self.first_token += query.shape[-2]
        self.is_done = True
        if takes_mechanisms:
            return result
        return (self.after(result[0]), *result[1:]) if isinstance(result, tuple) else self.after(result)

    def sdpa(
        self, function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Called for ``function(query, key, value, …)``, which is ``scaled_dot_product_attention``.

        ``[B, H, T, D]`` or ``[B·H, T, D]`` → the same. More dimensions are for layers without per-head parameters.
        """
        if query.ndim == 3 and self.geometry is not None:
            batch = query.shape[0] // self.geometry.num_heads

            def heads_apart(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                states = (states.flatten(0, 1) for states in (query, key, value))
                y: Tensor = function(*states, *args, **kwargs).unflatten(0, (batch, -1))
                return y

            states = (states.unflatten(0, (batch, -1)) for states in (query, key, value))
            return self.sdpa(heads_apart, *states, *args, **kwargs).flatten(0, 1)
        query, key, value, _ = self.before(query, key, value)
        y = function(query, key, value, *args, **kwargs)
        if self.observer is not None and self.own_value is not None:
            own = self.own_value, self.cached_value, self.first_token
            self.observer.attended(AttentionCall(function, None, query, key, value, args, kwargs, y, *own))
        self.first_token += query.shape[-2]
        self.is_done = True
        return self.exclude(y)

    def sdpa_tokens_first(
        self, function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """:meth:`sdpa` of a function that takes and returns ``[B, T, H, D]``."""

        def heads_first(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            states = (states.transpose(1, 2) for states in (query, key, value))
            return function(*states, *args, **kwargs).transpose(1, 2)

        states = (states.transpose(1, 2) for states in (query, key, value))
        return self.sdpa(heads_first, *states, *args, **kwargs).transpose(1, 2)

    def mixed(self, y: Tensor) -> Tensor:
        """Called with y ``[…, T, H·D]``, the result of an attention that the layer writes out; returns the same."""
        if self.observer is not None:
            self.observer.mixed(y)
        self.is_done = True
        return self.after(y)

    def end(self, result: Any) -> Any:
        """Called with what the layer returns, and returns it."""
        if self.observer is not None:
            self.observer.ended(is_done=self.is_done)
        return result

    def end_mixed(self, result: Any) -> Any:
        """:meth:`end` of a layer that returns what it mixed, alone or first in a tuple."""
        return (self.mixed(result[0]), *result[1:]) if isinstance(result, tuple) else self.mixed(result)

    def read(self, name: str, hidden_states: Tensor, packed: Tensor) -> Tensor:
        """What the layer goes on with after projection ``name`` has made ``packed`` of its input."""
        return packed

    def to_cache(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache keeps of the tokens' key and value ``[B, Hkv, T, D]``."""
        self.own_value = self.cached_value = value
        return key, value

    def before(
        self, query: Tensor, key: Tensor, value: Tensor, takes_mechanisms: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Query, key and value for the attention function, and arguments for one that takes the mechanisms itself."""
        if self.cached_value is None:
            self.own_value = value
        return query, key, value, {}

    def after(self, y: Tensor) -> Tensor:
        """:meth:`exclude` of ``[…, T, H, D]`` or ``[…, T, H·D]``."""
        return y

    def exclude(self, y: Tensor) -> Tensor:
        """z of the attention function's output y ``[B, H, T, D]``."""
        return y


def _heads_first(result: Any, query: Tensor) -> Tensor:
    """An attention function's result in transformers' convention as ``[B, H, T, D]``."""
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y.reshape(query.shape[0], query.shape[2], query.shape[1], -1).transpose(1, 2)
