"""Watch every self-attention layer of a model in its forward pass, and leave no trace in it.

A watched layer runs through an insertion, as an upgraded one does (:mod:`exsel.nn.insertion`), which lets the layer's
own mechanisms do what they do and calls the layer's own attention function: the model computes what it always does,
and an :class:`Observer` is shown it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exsel.diagnostics import mixing
from exsel.diagnostics.implementations import watchable_implementations
from exsel.diagnostics.mixing import Mixing
from exsel.nn.attention import Exclusive
from exsel.nn.packing import PACKINGS
from exsel.nn.temperature import Temperature
from exsel.nn.untouched import UNTOUCHED
from exsel.upgrading import planning
from exsel.upgrading.apply import insert, remove
from exsel.upgrading.planning import Target
from exsel.upgrading.rewriting import CHILD

_ACROSS = "it was called to attend to other tokens than its own"


@dataclass(frozen=True)
class Layer:
    """A self-attention layer that is watched.

    Args:
        index: among the model's self-attention layers, as :func:`exsel.support` counts them.
        target: what is known of it.
        module: the layer.
        has: the temperatures that it has: of ``query``, ``key``, ``value``.
    """

    index: int
    target: Target
    module: nn.Module
    has: frozenset[str]


@dataclass(frozen=True)
class Projected:
    """What a layer's projection made of its tokens.

    Args:
        apply: the projection, ``[1, n, E]`` → ``[1, n, slots·D]``.
        packing: of its output.
        hidden_states: ``[…, E]``, its input.
        states: queries, keys or values, ``[B, heads, T, D]``.
    """

    apply: Callable[[Tensor], Tensor]
    packing: str
    hidden_states: Tensor
    states: Tensor


@dataclass(frozen=True)
class Attended:
    """One call of a layer's attention.

    Args:
        y: ``[B, H, T, D]``, attention's own output.
        own_value: ``[B, Hkv, T, D]``, without a temperature.
        mixing: what was mixed; ``None``: attention that is written out in the layer, whose weights nobody sees.
        projected: by kind, where that is known.
        tau: by kind, the inverse temperatures ``[B, heads, T]``.
        in_float32: for a ``y`` in low precision, the same attention of the same inputs in float32.
    """

    y: Tensor
    own_value: Tensor
    mixing: Mixing | None
    projected: Mapping[str, Projected]
    tau: Mapping[str, Tensor]
    in_float32: Callable[[], Tensor] | None = None


class Observer:
    """What is told of every layer; does nothing itself."""

    def attended(self, layer: Layer, attended: Attended) -> None:
        """A layer has attended."""

    def excluded(self, layer: Layer, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor) -> None:
        """A layer's exclusive projection has made z of y, ``[B, H, T, D]``; own_value ``[B, Hkv, T, D]``."""

    def lost(self, layer: Layer, reason: str) -> None:
        """A layer cannot be watched in this pass."""


@dataclass(frozen=True)
class Watched:
    """The layers of a model that are watched, and the attention modules that are not, with their reasons."""

    layers: tuple[Layer, ...]
    left_out: tuple[Target, ...]


@contextmanager
def watch(model: nn.Module, observer: Observer) -> Iterator[Watched]:
    """Have ``observer`` see every self-attention layer of ``model``, in evaluation mode and uncompiled.

    On the way out, with an exception too, the model's modules, classes, modes and attention implementation are what
    they were. An implementation that shows no weights to anybody (flash, flex and exsel's own) gives way to ``sdpa``
    for the time, or where a model does not support it to ``eager``.

    Raises:
        ValueError: a model without self-attention, or with none that could be watched.
    """
    watched = _plan(model)
    with ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules()]
        stack.callback(_set_modes, modes)
        model.eval()
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(watchable_implementations(model))
        for layer in watched.layers:
            _put_in(layer, observer, stack)
        yield watched


def _plan(model: nn.Module) -> Watched:
    found = [target for target in planning.targets(model) if not target.left_alone]
    modules = {name: place for place, (name, _) in enumerate(model.named_modules())}
    counted = sorted([*found, *planning.own_layers(model)], key=lambda target: modules[target.name])
    layers, left_out = [], [target for target in planning.targets(model) if target.left_alone]
    for index, target in enumerate(counted):
        module = model.get_submodule(target.name)
        if target.exclusive:
            left_out.append(target)
        else:
            has = {name.rpartition(".")[2] for name, part in module.named_modules() if isinstance(part, Temperature)}
            layers.append(Layer(index, target, module, frozenset(has)))
    if not layers:
        reasons = "; ".join(dict.fromkeys(f"{target.cls}: {target.exclusive}" for target in left_out))
        raise ValueError(
            f"{type(model).__name__} has no self-attention that could be watched"
            + (f" ({reasons})" if reasons else ": none of its modules is softmax attention among tokens")
        )
    return Watched(tuple(layers), tuple(left_out))


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, is_training in modes:
        module.training = is_training


def _put_in(layer: Layer, observer: Observer, stack: ExitStack) -> None:
    module = layer.module
    inner = module._modules.get(CHILD)
    watcher = _Watcher(layer, observer, inner)
    for name, part in module.named_modules():
        if isinstance(part, Temperature):
            handle = part.register_forward_hook(watcher.keep_tau(name.rpartition(".")[2]))
            stack.callback(handle.remove)
        elif isinstance(part, Exclusive):
            stack.callback(part.register_forward_hook(watcher.tell_excluded).remove)
    if inner is None:
        insert(module, layer.target, watcher)
        stack.callback(remove, module)
    else:
        module._modules[CHILD] = watcher
        stack.callback(module._modules.__setitem__, CHILD, inner)


class _Watcher(nn.Module):
    """In the place of a layer's mechanisms: begins an insertion that goes through theirs."""

    def __init__(self, layer: Layer, observer: Observer, inner: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.observer = layer, observer
        self.inner = inner
        self.tau: dict[str, Tensor] = {}

    def begin(self, context: Any = None, **call: Any) -> Any:
        """One forward pass."""
        self.tau = {}
        if self.inner is not None:
            return _Insertion(self, self.inner.begin(context=context, **call))  # type: ignore[operator]
        if context is not None:
            self.observer.lost(self.layer, _ACROSS)
            return UNTOUCHED
        return _Insertion(self, UNTOUCHED)

    def keep_tau(self, kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _inputs: Any, tau: Tensor) -> None:
            self.tau[kind] = tau if tau.ndim == 3 else tau.unsqueeze(0)

        return keep

    def tell_excluded(self, module: nn.Module, inputs: tuple[Tensor, Tensor], z: Tensor) -> None:
        assert isinstance(module, Exclusive)
        y, own_value = inputs
        if y.ndim == 4:
            self.observer.excluded(self.layer, module, y, own_value, z)


class _Insertion:
    """One forward pass of a watched layer: what its own insertion does, shown to the observer."""

    def __init__(self, watcher: _Watcher, inner: Any) -> None:
        self.watcher = watcher
        self.layer = watcher.layer
        self.inner = inner
        self.projected: dict[str, Projected] = {}
        self.seen: set[str] = set()
        self.own_value: Tensor | None = None
        self.cached_value: Tensor | None = None
        self.first_token = 0
        self.is_done = False

    def project(self, name: str, module: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        def watched(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            packed = module(hidden_states, *args, **kwargs)
            self._keep_projected(name, functools.partial(_called, module, args, kwargs), hidden_states, packed)
            return packed

        return self.inner.project(name, watched, hidden_states, *args, **kwargs)

    def update(self, cache: Any, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
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
        own_value = self._own_value(value)

        def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            y = function(query, key, value, *args, **kwargs)
            self._tell_sdpa(function, y, own_value, query, key, value, args, kwargs)
            return y

        return self.inner.sdpa(watched, query, key, value, *args, **kwargs)

    def sdpa_tokens_first(
        self, function: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
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
        own_value = self.own_value
        if own_value is None or y.numel() % own_value[:, :1].numel():
            self._lose("its own values are not seen" if own_value is None else _ACROSS)
        else:
            batch, _, num_tokens, head_dim = own_value.shape
            self._tell(y.reshape(batch, num_tokens, -1, head_dim).transpose(1, 2), own_value, None, None)
        return self.inner.mixed(y)

    def end(self, result: Any) -> Any:
        if not self.is_done:
            self._lose("it took a path around its attention function")
        return self.inner.end(result)

    def end_mixed(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return (self.mixed(result[0]), *result[1:])
        return self.mixed(result)

    def _keep_projected(
        self, name: str, apply: Callable[[Tensor], Tensor], hidden_states: Tensor, packed: Tensor
    ) -> None:
        layout, geometry = self.layer.target.layout, self.layer.target.geometry
        # What a layer puts through its projections later are not its tokens.
        if name in self.seen or layout is None or geometry is None:
            return
        self.seen.add(name)
        packing = layout.projections[name]
        for kind, part in PACKINGS[packing].split(packed, geometry).items():
            # A picture's tokens have two dimensions; written-out attention may have none for the batch.
            states = part.flatten(1, -3) if part.ndim > 3 else part.unsqueeze(0)
            self.projected[kind] = Projected(apply, packing, hidden_states, states.transpose(1, 2))
            if kind == "value" and (layout.output is not None or self._is_own_layer()):
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
            self._lose(_ACROSS)
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
        told = Attended(y, own_value, mixed, projected, dict(self.watcher.tau), in_float32 if is_low else None)
        self.watcher.observer.attended(self.layer, told)

    def _lose(self, reason: str) -> None:
        self.is_done = True
        self.watcher.observer.lost(self.layer, reason)


def _called(module: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], states: Tensor) -> Tensor:
    return module(states, *args, **kwargs)


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
