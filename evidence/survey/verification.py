"""Is an upgraded model right? Measured on the model itself, by what must hold whatever its architecture.

No check looks at how the upgrade was done. That the projection is at its place and has the right values, for one:
where all tokens of a layer's input are alike, each attends to copies of itself, y = v, and what is left of it is
nothing; so the upgraded layer must give what the plain one gives without values, whatever norms and gates follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evidence.survey.layer_checks import (
    TOLERANCE,
    check_alike_tokens,
    check_own_tokens,
    convolves,
    expect,
    seeded,
    tensors,
)
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.models.modeling import CACHE_NAME
from exsel.nn.exclusive import Exclusive
from exsel.nn.mechanisms import Mechanisms
from exsel.nn.projections import PACKINGS
from exsel.nn.temperature import Temperature
from exsel.upgrading import attention_layers
from exsel.upgrading.rewriting import CHILD
from exsel.upgrading.upgrade_model import downgrade, upgrade
from exsel.upgrading.upgraded_class import Upgraded


class NotReachedError(Exception):
    """The inputs do not reach any layer that can be upgraded."""


@dataclass(frozen=True)
class Verification:
    """What was verified.

    Args:
        layers: how many layers were upgraded.
        called: how many of them the inputs reached.
        deviations: the largest of each check, relative.
    """

    layers: int
    called: int
    deviations: Mapping[str, float]


def verify(model: nn.Module, inputs: Mapping[str, Any], *, can_generate: bool = False) -> Verification:
    """Upgrade ``model`` where it can be, check it, and take everything out again.

    Args:
        model: in eval mode, in float32, with weights that hide nothing (norms and biases that are not 1 and 0).
        inputs: what to call it on.
        can_generate: whether a cached pass over its tokens must equal the full one.

    Returns:
        How many layers, and how exactly.

    Raises:
        VerificationError: a check that failed.
        NotReachedError: there was nothing to check.
        ValueError: a model that cannot be upgraded.
    """
    chosen = attention_layers.counted_layers(model)
    layers = tuple(index for index, target in enumerate(chosen) if not target.exclusive)
    selective_layers = tuple(index for index in layers if not chosen[index].selective)
    plain = _outputs(model, inputs)
    state, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    plain_cached = _cached_deviation(model, inputs) if can_generate else None
    measured: dict[str, float] = {}

    def put_in(strength: Any, position: bool) -> None:
        upgrade(
            model,
            exclusive=ExclusiveConfig(layers=layers, strength=strength),
            selective=SelectiveConfig(layers=selective_layers, position=position, value_position=position)
            if selective_layers
            else None,
        )

    put_in("learned" if all(chosen[index].geometry for index in layers) else 0.0, False)
    measured["identity"] = _deviation(_outputs(model, inputs), plain)
    expect(measured["identity"] < TOLERANCE, f"identity settings change the output by {measured['identity']:.1e}")
    _check_gradients(model, inputs)
    plain_inputs = {**inputs, "use_cache": False} if can_generate else inputs
    measured["own tokens"] = check_own_tokens(model, lambda: _outputs(model, plain_inputs))
    downgrade(model)

    put_in(1.0, True)
    _randomise(model)
    with _probing(model) as probe:
        _outputs(model, inputs)
    is_text = all(isinstance(item, Tensor) and not item.is_floating_point() for item in inputs.values())
    measured["orthogonality"] = probe.check(counts=can_generate and is_text)
    has_text = "input_ids" in inputs
    measured["own values"] = check_alike_tokens(model, lambda: _outputs(model, plain_inputs), skips=has_text)
    if has_text and any(convolves(module) for module in model.modules() if isinstance(module, Upgraded)):
        # On one token, where the first tokens of a convolution need not be alike.
        one_token = {"input_ids": inputs["input_ids"][:, :1]}
        check_alike_tokens(model, lambda: _outputs(model, one_token), only_convolutions=True)
    if plain_cached is not None and plain_cached < TOLERANCE:
        measured["cache"] = _cached_deviation(model, inputs) or 0.0
        expect(measured["cache"] < TOLERANCE, f"a cached pass differs by {measured['cache']:.1e} from the full one")
    downgrade(model)

    again = _outputs(model, inputs)
    expect(all(torch.equal(left, right) for left, right in zip(again, plain, strict=True)), "downgrade leaves traces")
    expect(list(model.state_dict()) == state, "downgrade leaves parameters")
    expect([type(module) for module in model.modules()] == classes, "downgrade leaves classes")
    return Verification(len(layers), len(probe.worst), measured)


def _outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad(), seeded():
        return [tensor.clone() for tensor in tensors(model(**inputs))]


def _deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    expect(len(found) == len(expected), "the outputs are others")
    worst = 0.0
    for left, right in zip(found, expected, strict=True):
        if right.numel():
            finite = torch.isfinite(right)
            difference = (left - right)[finite].abs()
            if difference.numel():
                worst = max(worst, (difference.max() / right[finite].abs().max().clamp_min(1e-6)).item())
    return worst


def _mechanisms(model: nn.Module) -> dict[str, Mechanisms]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanisms)}


def _check_gradients(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.enable_grad(), seeded():
        loss = sum(
            (tensor * torch.randn(tensor.shape, generator=generator)).sum()
            for tensor in tensors(model(**inputs))
            if tensor.requires_grad and torch.isfinite(tensor).all()
        )
    expect(isinstance(loss, Tensor), "no output has a gradient")
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, mechanisms in _mechanisms(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        own = [parameter.grad for child, parameter in layer.named_parameters() if not child.startswith(f"{CHILD}.")]
        if not any(grad is not None and grad.abs().max() > 0 for grad in own):
            continue  # nothing of this layer is in the output, upgraded or not
        for child, parameter in mechanisms.named_parameters():
            grad = 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
            projection = _projection_gradient(layer, mechanisms, "query" if ".query." in child else "value")
            # A projection without a gradient (all its keys or values are alike) gives none to what reads it.
            if projection != 0:
                expect(grad > 1e-4 * (projection or 0), f"no gradient reaches {name}.{child}: {grad:.1e}")
    model.zero_grad(set_to_none=True)


def _projection_gradient(layer: nn.Module, mechanisms: Mechanisms, kind: str) -> float | None:
    """The largest gradient of a weight of the projection that holds ``kind``; ``None``: not to be had."""
    for name, packing_name in mechanisms.projections.packings.items():
        child = getattr(layer, name, None)
        weight = getattr(child, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.grad is None or mechanisms.geometry is None:
            continue
        parts = PACKINGS[packing_name].split(
            weight.grad if isinstance(child, Conv1D) else weight.grad.T, mechanisms.geometry
        )
        if kind in parts:
            return parts[kind].abs().max().item()
    return None


def _randomise(model: nn.Module) -> None:
    """Temperatures of an effect that cannot be overlooked."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, Temperature):
            with torch.no_grad():
                if module.weight is not None:
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                if module.position_logit is not None:
                    module.position_logit.copy_(torch.randn(module.position_logit.shape, generator=generator) - 1)


class _Probe:
    def __init__(self) -> None:
        self.worst: dict[str, float] = {}
        self.positions: dict[str, Tensor] = {}

    def check(self, counts: bool) -> float:
        for name, cosine in self.worst.items():
            expect(cosine < TOLERANCE, f"{name} leaves {cosine:.1e} along the own value")
        if counts:
            for name, position in self.positions.items():
                counted = torch.arange(position.shape[-1]) + position[..., :1]
                expect(torch.equal(position, counted), f"{name} counts positions {position.flatten()[:9].tolist()}")
        return max(self.worst.values(), default=0.0)


@contextlib.contextmanager
def _probing(model: nn.Module) -> Iterator[_Probe]:
    probe = _Probe()
    handles = []

    def watch_exclusive(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, Tensor], z: Tensor) -> None:
            y, v = (argument.double() for argument in arguments)
            v = v.repeat_interleave(y.shape[-3] // v.shape[-3], dim=-3)
            along = (z.double() * torch.nn.functional.normalize(v, dim=-1)).sum(-1).abs()
            probe.worst[name] = max(probe.worst.get(name, 0.0), (along.max() / y.abs().max().clamp_min(1e-9)).item())

        return hook

    def watch_temperature(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(arguments[1], Tensor):
                probe.positions[name] = arguments[1]

        return hook

    for name, module in model.named_modules():
        if isinstance(module, Exclusive):
            handles.append(module.register_forward_hook(watch_exclusive(name)))
        elif isinstance(module, Temperature):
            handles.append(module.register_forward_pre_hook(watch_temperature(name), with_kwargs=True))
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()
    expected = {f"{name}.exclusive" for name, module in _mechanisms(model).items() if module.exclusive is not None}
    # Layers for other inputs, a picture's or a sound's, are not called.
    expect(set(probe.worst) <= expected, "a layer projects that was not upgraded")
    if not probe.worst:
        raise NotReachedError("its inputs here reach no layer that can be upgraded")


def _cached_deviation(model: nn.Module, inputs: Mapping[str, Any]) -> float | None:
    """How far logits from a cache, token by token, are from those of one pass; ``None``: not to be had."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    ids = inputs[name]
    rest = {key: item for key, item in inputs.items() if key not in (name, "attention_mask", "decoder_attention_mask")}
    if name == "decoder_input_ids" and "attention_mask" in inputs:
        rest["attention_mask"] = inputs["attention_mask"]
    try:
        with torch.no_grad(), seeded():
            full = model(**{**rest, name: ids}).logits
            cache, pieces = None, []
            for start, stop in ((0, 3), *((at, at + 1) for at in range(3, ids.shape[1]))):
                output = model(**{**rest, name: ids[:, start:stop], CACHE_NAME: cache, "use_cache": True})
                cache = getattr(output, CACHE_NAME)
                pieces.append(output.logits)
                if cache is None:
                    return None
    except (TypeError, ValueError, AttributeError, RuntimeError, KeyError, IndexError):
        if any(True for module in model.modules() if hasattr(module, CHILD)):
            raise
        return None  # the plain model itself cannot do it so
    logits = torch.cat(pieces, dim=1)
    return _deviation([logits], [full]) if logits.shape == full.shape else None
