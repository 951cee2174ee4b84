"""Is one upgraded layer right? What must hold of its output, whatever its architecture.

Where all tokens of a layer's input are alike, each attends to copies of itself, y = v, and the projection leaves
nothing; so the upgraded layer must give what the plain one gives without values. And what the projection takes from one
token of a sequence must point where that token's own value points, as a sequence of its copies tells.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from exsel.nn.mechanisms import Mechanisms
from exsel.nn.projections import PACKINGS, Packing
from exsel.upgrading.rewriting import CACHES, CHILD
from exsel.upgrading.upgraded_class import Upgraded, original_class

#: A thousand roundings of float32, relative to the largest number of a tensor: sums in another order, through norms.
TOLERANCE = 1000 * torch.finfo(torch.float32).eps


class VerificationError(Exception):
    """An upgraded model computes something wrong; the message says which check and where."""


def expect(is_so: bool, failure: str) -> None:
    """Raise :class:`VerificationError` with ``failure`` unless it is so."""
    if not is_so:
        raise VerificationError(failure)


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in an output, in order; caches are left out."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if "past_key_values" not in name and "cache" not in name:
                yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Some models draw noise even in eval mode: the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def convolves(module: nn.Module) -> bool:
    """Whether a convolution lies in the layer; GPT-2's Conv1D is none."""
    children = [child for child in module.modules() if not isinstance(child, Conv1D)]
    return any("conv" in type(child).__name__.lower() for child in children)


class _Call:
    """A call of an attention module, as the model makes it, to be made again on other tokens."""

    def __init__(self, name: str, module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name = name
        self.module = module
        self.arguments = arguments
        self.kwargs = {key: None if key in CACHES else item for key, item in kwargs.items()}
        mechanisms = module._modules[CHILD]
        assert isinstance(mechanisms, Mechanisms)
        self.mechanisms = mechanisms

    def output(self, replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The layer's output ``[…, E]``, with the inputs replaced."""
        arguments, kwargs = self.arguments, self.kwargs
        if replace is not None:
            replaced: dict[int, Tensor] = {}

            def once(item: Any, is_input: bool) -> Any:
                if not (is_input and isinstance(item, Tensor) and item.is_floating_point()):
                    return item
                if id(item) not in replaced:  # one tensor as query and key stays one
                    replaced[id(item)] = replace(item)
                return replaced[id(item)]

            shape = getattr(arguments[0], "shape", None) if arguments else None
            arguments = tuple(once(item, getattr(item, "shape", None) == shape) for item in arguments)
            kwargs = {name: once(item, _INPUTS.search(name) is not None) for name, item in kwargs.items()}
        with torch.no_grad(), seeded():
            return next(tensors(self.module.forward(*arguments, **kwargs)))

    @property
    def first_input(self) -> Tensor:
        """The tokens ``[…, E]``."""
        candidates = (*self.arguments, *(item for name, item in self.kwargs.items() if _INPUTS.search(name)))
        return next(item for item in candidates if isinstance(item, Tensor))

    @property
    def has_projections(self) -> bool:
        """Whether it is known where its values come from."""
        children = [getattr(self.module, name, None) for name in self.mechanisms.projections.packings]
        return self.mechanisms.geometry is not None and all(isinstance(child, nn.Module) for child in children)

    @contextlib.contextmanager
    def in_float64(self) -> Iterator[None]:
        """Within, the module's weights and the call's tensors have float64."""
        given = self.arguments, self.kwargs

        def widen(item: Any) -> Any:
            return item.double() if isinstance(item, Tensor) and item.is_floating_point() else item

        self.arguments, self.kwargs = tree_map(widen, given)
        self.module.double()
        try:
            yield
        finally:
            self.arguments, self.kwargs = given
            self.module.float()

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Within, the module is what it was before its upgrade."""
        upgraded = type(self.module)
        self.module.__class__ = original_class(self.module)
        try:
            yield
        finally:
            self.module.__class__ = upgraded

    @contextlib.contextmanager
    def without_values(self) -> Iterator[None]:
        """Within, the module's value projection gives zeros."""
        geometry = self.mechanisms.geometry
        assert geometry is not None
        handles = []
        for name, packing_name in self.mechanisms.projections.packings.items():
            packing = PACKINGS[packing_name]

            def hook(child: nn.Module, arguments: Any, output: Tensor, packing: Packing = packing) -> Tensor:
                values = packing.split(output, geometry).get("value")
                if values is None:
                    return output
                return packing.scale(output, {"value": torch.zeros(values.shape[:-1])}, geometry)

            handles.append(getattr(self.module, name).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


_INPUTS = re.compile(r"hidden_state|query|key$|key_tensor|value|queries|keys|^x$")


def _calls(model: nn.Module, run: Callable[[], Any]) -> list[_Call]:
    """The first call of each upgraded module while ``run`` runs the model."""
    calls: dict[str, _Call] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Upgraded):
            assert isinstance(module, nn.Module)

            def hook(module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                calls.setdefault(name, _Call(name, module, arguments, kwargs))

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values())


def check_alike_tokens(
    model: nn.Module, run: Callable[[], Any], *, skips: bool = False, only_convolutions: bool = False
) -> float:
    """Each upgraded layer on tokens that are all alike gives what it gives without values: see the module.

    Args:
        model: with the projection at full strength.
        run: calls it, without a cache.
        skips: leaves out layers with convolutions, at whose edges tokens are not alike.
        only_convolutions: checks those alone.

    Returns:
        The worst deviation, relative to what there was to take away.

    Raises:
        VerificationError: own values are left.
    """
    worst = 0.0
    for call in _calls(model, run):
        if (convolves(call.module) and skips) or (only_convolutions and not convolves(call.module)):
            continue

        ratio = _left(call)
        if ratio >= TOLERANCE:  # a norm behind the projection makes rounding larger
            with call.in_float64():
                ratio = _left(call)
        expect(ratio < TOLERANCE, f"{call.name}: {ratio:.1e} of its own tokens' values is left in its output")
        worst = max(worst, ratio)
    return worst


def _left(call: _Call) -> float:
    """What is left of the values where all tokens are alike, relative to what there was to take away."""

    def alike(seed: int) -> Callable[[Tensor], Tensor]:
        return lambda item: (
            torch.randn(item.shape[-1], generator=torch.Generator().manual_seed(seed)).to(item.dtype).expand(item.shape)
        )

    upgraded = call.output(alike(3))
    with call.plain():
        plain = call.output(alike(3))
    if not call.has_projections:  # the layer's output is a constant
        nothing = call.output(alike(4))
        with call.plain():
            scale = (plain - call.output(alike(4))).abs().max()
    else:
        with call.plain(), call.without_values():
            nothing = call.output(alike(3))
        scale = (plain - nothing).abs().max()
    expect(bool(scale > 0), f"{call.name}: the plain layer has nothing to take away, so nothing was tested")
    return ((upgraded - nothing).abs().max() / scale).item()


def check_own_tokens(model: nn.Module, run: Callable[[], Any]) -> float:
    """What one head's projection takes from a token points along what it takes where all tokens are that token.

    Args:
        model: with a learned strength, which is 0, and temperatures that are 1.
        run: calls it, without a cache.

    Returns:
        The worst sine of the angle between the two.

    Raises:
        VerificationError: they point elsewhere: the value projected off is another token's.
    """
    worst = 0.0
    for call in _calls(model, run):
        exclusive = call.mechanisms.exclusive
        tokens = call.first_input
        if exclusive is None or exclusive.strength_logit is None or convolves(call.module):
            continue

        in_sequence = _taken(call, exclusive.strength_logit)
        if in_sequence.shape[:-1] != tokens.shape[:-1]:
            continue  # its output has other tokens than its input
        half = _taken(call, exclusive.strength_logit, strength=0.5)
        if (half - in_sequence / 2).abs().max() > 1e-3 * in_sequence.abs().max():
            continue  # a norm behind it turns what is taken
        in_sequence = in_sequence.flatten(0, -2)
        index = int(in_sequence.norm(dim=-1).argmax())

        def copies(item: Tensor, index: int = index, count: int = in_sequence.shape[0]) -> Tensor:
            rows = item.flatten(0, -2)
            return rows[index].expand(item.shape) if rows.shape[0] == count else item

        alone = _taken(call, exclusive.strength_logit, copies).flatten(0, -2)[index].double()
        found = in_sequence[index].double()
        cosine = torch.nn.functional.cosine_similarity(alone, found, dim=0).abs().clamp(max=1)
        sine = (1 - cosine.square()).sqrt().item()
        # Angles of float32 differences: what is taken is a fraction of what it is taken from.
        budget = TOLERANCE * (1 + call.output().abs().max() / min(alone.norm(), found.norm()).clamp_min(1e-30)).item()
        expect(
            sine < budget, f"{call.name}: what is taken from a token is not along its own value, but {sine:.1e} beside"
        )
        worst = max(worst, sine)
    return worst


def _taken(
    call: _Call, strength_logit: Tensor, replace: Callable[[Tensor], Tensor] | None = None, strength: float = 1.0
) -> Tensor:
    """What the projection of the first head takes from the layer's output."""
    plain = call.output(replace)
    with torch.no_grad():
        strength_logit[0] = math.atanh(min(strength, 1 - 1e-15))
        difference = call.output(replace) - plain
        strength_logit[0] = 0.0
    return difference
