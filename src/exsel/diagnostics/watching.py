"""Watch every self-attention layer of a model in its forward pass, and leave no trace in it.

A watched layer runs through an insertion, as an upgraded one does (:mod:`exsel.nn.mechanisms`), which lets the layer's
own mechanisms do what they do and calls the layer's own attention function: the model computes what it always does,
and an :class:`~exsel.diagnostics.observing.Observer` is shown it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exsel.diagnostics.implementations import watchable_implementations
from exsel.diagnostics.insertion import ACROSS, WatchedInsertion
from exsel.diagnostics.observing import Layer, Observer
from exsel.errors import ExselError
from exsel.nn.exclusive import Exclusive
from exsel.nn.layer_pass import LayerPass
from exsel.nn.self_attention import SelfAttention
from exsel.nn.temperature import Temperature
from exsel.upgrading import attention_layers
from exsel.upgrading.attention_layers import Target
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgraded_class import insert, remove


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
        ExselError: a model without self-attention, or with none that could be watched.
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
    targets = attention_layers.targets(model)
    found = [target for target in targets if not target.left_alone]
    modules = {name: place for place, (name, _) in enumerate(model.named_modules())}
    counted = sorted([*found, *attention_layers.own_layers(model)], key=lambda target: modules[target.name])
    layers, left_out = [], [target for target in targets if target.left_alone]
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention):
            reason = "it calls exsel's own operator, which shows neither weights nor attention's own output"
            left_out.append(Target(name, type(module).__name__, reason, reason))
    for index, target in enumerate(counted):
        module = model.get_submodule(target.name)
        if target.exclusive:
            left_out.append(target)
        else:
            has = {name.rpartition(".")[2] for name, part in module.named_modules() if isinstance(part, Temperature)}
            layers.append(Layer(index, target, module, frozenset(has)))
    if not layers:
        reasons = "; ".join(dict.fromkeys(f"{target.cls}: {target.exclusive}" for target in left_out))
        raise ExselError(
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
        insert(module, layer.target.projections, watcher)
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
            return self._watched(self.inner.begin(context=context, **call))  # type: ignore[operator]
        if context is not None:
            self.observer.lost(self.layer, ACROSS)
            return LayerPass()
        return self._watched(LayerPass())

    def _watched(self, inner: Any) -> WatchedInsertion:
        return WatchedInsertion(self.layer, self.observer, inner, self.tau)

    def keep_tau(self, kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _inputs: Any, tau: Tensor) -> None:
            self.tau[kind] = tau if tau.ndim == 3 else tau.unsqueeze(0)

        return keep

    def tell_excluded(self, module: nn.Module, inputs: tuple[Tensor, Tensor], z: Tensor) -> None:
        assert isinstance(module, Exclusive)
        y, own_value = inputs
        if y.ndim == 4:
            self.observer.excluded(self.layer, module, y, own_value, z)
