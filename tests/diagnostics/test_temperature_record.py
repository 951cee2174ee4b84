"""How far temperatures moved, against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

from exsel import SelectiveConfig, upgrade
from exsel.diagnostics import temperature_moves
from exsel.nn import Temperature
from models.small_models import small_model
from upgrading.architectures import plain

LENGTH = 7
BLOCKS = Dataset.from_dict({"input_ids": [[(3 * row + place) % 50 for place in range(LENGTH)] for row in range(3)]})
BUILD: dict[str, tuple[str, Callable[[SelectiveConfig], Any]]] = {
    "exsel": ("model.layers.{}.self_attn", lambda config: small_model(selective=config).double()),
    "llama": ("model.layers.{}.self_attn", lambda config: upgrade(plain("llama"), selective=config).double()),
    "gpt2": ("transformer.h.{}.attn", lambda config: upgrade(plain("gpt2"), selective=config).double()),
}


def moves(model: torch.nn.Module) -> list[dict[str, Any]]:
    return temperature_moves(model, BLOCKS, batch_size=2, device=torch.device("cpu"))


def temperatures(model: torch.nn.Module) -> list[Temperature]:
    return [module for module in model.modules() if isinstance(module, Temperature)]


@pytest.mark.parametrize("kind", BUILD)
def test_numbers(kind: str) -> None:
    name, build = BUILD[kind]
    model = build(SelectiveConfig(token="constant", position_form="double_exponential", position_init=0.01))
    model.train()
    for module in temperatures(model):
        assert module.weight is not None
        assert module.position_logit is not None
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.constant_(module.position_logit, module.initial_position_logit)
    at_start = moves(model)
    assert model.training
    assert [(record["module"], record["kind"]) for record in at_start] == [
        (name.format(layer), kind) for layer in range(len(at_start) // 2) for kind in ("query", "value")
    ]
    assert all(record["moved"] < 1e-12 and record["over_heads"] < 1e-7 for record in at_start)
    first, *_ = temperatures(model)
    assert first.weight is not None
    assert first.position_logit is not None
    with torch.no_grad():
        first.weight.copy_(torch.linspace(-0.2, 0.3, first.num_heads).unsqueeze(-1))
        first.position_logit.fill_(math.log(-math.log(0.1)))
    log_n = torch.arange(1, LENGTH + 1, dtype=torch.float64).log()
    tau = 1 + torch.linspace(-0.2, 0.3, first.num_heads, dtype=torch.float64).tanh().unsqueeze(-1) + 0.1 * log_n
    found, *others = moves(model)
    assert found["mean"] == pytest.approx(tau.mean().item(), rel=1e-6)
    assert found["over_tokens"] == pytest.approx(0.1 * log_n.std(correction=0).item(), rel=1e-5)
    assert found["over_heads"] == pytest.approx(tau.mean(1).std(correction=0).item(), rel=1e-6)
    assert found["moved"] == pytest.approx((tau / (1 + 0.01 * log_n) - 1).square().mean().sqrt().item(), rel=1e-6)
    assert others == at_start[1:]


def test_a_model_without_temperatures_has_none() -> None:
    assert moves(small_model()) == []
