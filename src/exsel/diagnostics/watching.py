"""Watch every self-attention layer of a model in its forward pass, and leave no trace in it.

While it is watched, a layer is rewritten as for an upgrade, unless it is upgraded already. Its forward passes
(:mod:`exsel.nn.layer_pass`) still compute what they did before, and each has an observer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exsel.diagnostics.observing import ACROSS, Layer, Observer, WatchedPass
from exsel.errors import ExselError
from exsel.nn.exclusive import Exclusive
from exsel.nn.layer_pass import LayerPass
from exsel.nn.self_attention import SelfAttention
from exsel.nn.temperature import Temperature
from exsel.upgrading import attention_layers
from exsel.upgrading.attention_layers import Target
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgraded_class import insert, remove

#: Attention implementations whose arguments show everything that changes the scores.
_READABLE = ("sdpa", "eager")


@contextmanager
def watch(model: nn.Module, observer: Observer) -> Iterator[tuple[list[Layer], list[Target]]]:
    """Have ``observer`` see every self-attention layer of ``model``, in evaluation mode and uncompiled.

    At the end of the block, also after an exception, the model's modules, classes, modes and attention implementation
    are restored. In the block, an implementation whose arguments do not show all of its attention (flash, flex and
    exsel's own) is replaced by ``sdpa``, or by ``eager`` in a model that does not support ``sdpa``. The block is given
    the layers that are watched, and the attention modules that are not, with their reasons.

    Raises:
        ExselError: a model without self-attention, or with none that could be watched.
    """
    layers, left_out = _plan(model)
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        _make_readable(model, stack)
        for layer in layers:
            _put_in(layer, observer, stack)
        yield layers, left_out


def _plan(model: nn.Module) -> tuple[list[Layer], list[Target]]:
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
    return layers, left_out


def _make_readable(model: nn.Module, stack: ExitStack) -> None:
    """Let every part of a transformers model attend with ``sdpa`` or ``eager`` until the stack closes."""
    has_sdpa = False
    for module in model.modules():
        has_sdpa = getattr(type(module), "_supports_sdpa", has_sdpa)
        config: Any = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation_internal", None)
        if implementation is not None and implementation not in _READABLE:
            stack.callback(setattr, config, "_attn_implementation_internal", implementation)
            # The configuration's own property would also set the implementation of the configurations in it.
            config._attn_implementation_internal = "sdpa" if has_sdpa else "eager"


def _put_in(layer: Layer, observer: Observer, stack: ExitStack) -> None:
    module = layer.module
    inner = module._modules.get(CHILD)
    watcher = _Watcher(layer, observer, inner)
    for name, part in module.named_modules():
        if isinstance(part, Temperature):
            keep = partial(watcher.keep_tau, name.rpartition(".")[2])
            stack.callback(part.register_forward_hook(keep).remove)
        elif isinstance(part, Exclusive):
            stack.callback(part.register_forward_hook(watcher.tell_excluded).remove)
    if inner is None:
        insert(module, layer.target.projections, watcher)
        stack.callback(remove, module)
    else:
        module._modules[CHILD] = watcher
        stack.callback(module._modules.__setitem__, CHILD, inner)


class _Watcher(nn.Module):
    """Takes the place of a layer's mechanisms: begins their passes, or plain ones, and adds an observer."""

    def __init__(self, layer: Layer, observer: Observer, inner: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.observer = layer, observer
        self.inner: Any = inner
        self.tau: dict[str, Tensor] = {}

    def begin(self, context: Any = None, **call: Any) -> LayerPass:
        """One forward pass."""
        self.tau = {}
        if self.inner is not None:
            begun: LayerPass = self.inner.begin(context=context, **call)
        else:
            begun = LayerPass(self.layer.target.geometry)
            if context is not None:
                self.observer.lost(self.layer, ACROSS)
                return begun
        begun.observer = WatchedPass(self.layer, self.observer, self.tau)
        return begun

    def keep_tau(self, kind: str, _module: nn.Module, _inputs: Any, tau: Tensor) -> None:
        self.tau[kind] = tau if tau.ndim == 3 else tau.unsqueeze(0)

    def tell_excluded(self, module: nn.Module, inputs: tuple[Tensor, Tensor], z: Tensor) -> None:
        assert isinstance(module, Exclusive)
        y, own_value = inputs
        if y.ndim == 4:
            self.observer.excluded(self.layer, module, y, own_value, z)
