"""evidence/benchmarks/upgrade_overhead.py: what it measures is the same model with and without its upgrade."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def script() -> ModuleType:
    return importlib.import_module("evidence.benchmarks.upgrade_overhead")


def original_of(script: ModuleType, family: str) -> Any:
    size = script.TimedSize(width=32, inner=64, layers=2, heads=4, kv_heads=4, vocabulary=128, sequences=2)
    return script.build_original(family, size)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_are_shared_and_the_outputs_are_not(script: ModuleType, family: str) -> None:
    original = original_of(script, family)
    upgraded = script.variant(original, "exclusive")
    theirs = dict(upgraded.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in original.named_parameters())
    ids = torch.randint(3, 100, (2, 8))
    assert not torch.allclose(upgraded.eval()(ids).logits, original.eval()(ids).logits)


@pytest.mark.parametrize("batch", [1, 8])
def test_each_call_decodes_the_same_tokens_again(script: ModuleType, batch: int) -> None:
    original = original_of(script, "llama")
    names = []
    for contender in script.generation(original, batch, ["eager"]):
        work = contender.prepare()
        assert work.forward().shape == (batch, 1, 128)
        assert torch.equal(work.forward(), work.forward())
        names.append(contender.name)
    assert names == ["original", "exclusive", "selective", "exclusive+selective"]
