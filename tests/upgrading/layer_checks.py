"""What must hold of an upgraded model whatever its attention classes are, without a look at how it was upgraded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import exsel
from exsel import ExclusiveConfig, SelectiveConfig

#: With these the mechanisms are in place and change nothing.
IDENTITY: dict[str, Any] = {
    "exclusive": ExclusiveConfig(strength=0.0),
    "selective": SelectiveConfig(position=False, value_position=False),
}


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from (tensor for item in output.values() for tensor in tensors(item))
    elif isinstance(output, (tuple, list)):
        yield from (tensor for item in output for tensor in tensors(item))


def run(call: Callable[[], Any]) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors(call()))


def assert_close(found: list[Tensor], expected: list[Tensor], budget: float = 1e-5) -> None:
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert (left - right).abs().max() <= budget * right.abs().max()


def new_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "exsel." in name}


def randomise(model: nn.Module) -> None:
    for parameter in new_parameters(model).values():
        nn.init.normal_(parameter)


def check_model(model: nn.Module, call: Callable[[], Any], selective: bool = True) -> None:
    """Identity settings change nothing, others do; every new parameter has a gradient; downgrade restores all."""
    model.eval()
    plain = run(call)
    classes, names = [type(module) for module in model.modules()], list(model.state_dict())
    identity = IDENTITY if selective else {"exclusive": IDENTITY["exclusive"]}
    exsel.upgrade(model, **identity)
    assert_close(run(call), plain)
    exsel.downgrade(model)

    exsel.upgrade(model, exclusive=ExclusiveConfig(strength="learned"), selective=selective or None)
    outputs = [tensor for tensor in tensors(call()) if tensor.requires_grad]
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in outputs).backward()  # type: ignore[union-attr]
    assert new_parameters(model)
    for name, parameter in new_parameters(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    model.zero_grad(set_to_none=True)
    exsel.downgrade(model)

    exsel.upgrade(model, exclusive=True, selective=selective or None)
    randomise(model)
    assert (run(call)[0] - plain[0]).abs().max() > 1e-3 * plain[0].abs().max()
    exsel.downgrade(model)
    assert all(torch.equal(left, right) for left, right in zip(run(call), plain, strict=True))
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == names


def check_alike(model: nn.Module, attend: Callable[[Tensor], Any], shape: tuple[int, ...]) -> None:
    """Where all tokens are alike y = v, and nothing is left of it: the output depends on the input no more.

    Args:
        model: what is upgraded.
        attend: one attention layer of it, on its input.
        shape: of this input, the features last.
    """

    def change() -> float:
        with torch.no_grad():
            outputs = [next(tensors(attend(torch.randn(shape[-1]).expand(shape)))) for _ in range(2)]
        return (outputs[0] - outputs[1]).abs().max().item()

    plain = change()
    exsel.upgrade(model, exclusive=True)
    upgraded = change()
    exsel.downgrade(model)
    assert plain > 1e-3
    assert upgraded < 1e-4 * plain
