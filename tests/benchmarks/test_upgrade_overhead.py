"""evidence/benchmarks/upgrade_overhead.py: what it measures is the same model with and without its upgrade."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("evidence.benchmarks.upgrade_overhead")
    monkeypatch.setattr(module, "SIZES", {"tiny": ((32, 2, 4, 128), 2)})
    return module


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_are_shared_and_the_outputs_are_not(script: ModuleType, family: str) -> None:
    original = script.build_original(family, "tiny")
    upgraded = script.variant(original, "exclusive")
    theirs = dict(upgraded.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in original.named_parameters())
    ids = torch.randint(3, 100, (2, 8))
    assert not torch.allclose(upgraded.eval()(ids).logits, original.eval()(ids).logits)


@pytest.mark.parametrize("batch", [1, 8])
def test_each_call_decodes_the_same_tokens_again(script: ModuleType, batch: int) -> None:
    original = script.build_original("llama", "tiny")
    names = []
    for contender in script.generation(original, batch):
        if contender.group == "eager":
            work = contender.prepare()
            assert work.forward().shape == (batch, 1, 128)
            assert torch.equal(work.forward(), work.forward())
            names.append(contender.name)
    assert names == ["original", "exclusive", "selective", "exclusive+selective"]
