"""evidence/benchmarks/fine_tuning_steps.py: what it times trains what each way trains, and its table says tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from evidence.benchmarks import fine_tuning_steps
from evidence.benchmarks.fine_tuning_steps import GROUPS, SUBJECT, contenders
from evidence.benchmarks.performance import sections
from evidence.papers.fine_tuning import ALL, CONSTANT, KEYS, LORA, NORMS, PLANS, UNTOUCHED
from exsel.bench.measuring import summarise_rounds
from exsel.training.training_step import training_step


@pytest.mark.parametrize("group", GROUPS)
def test_every_way_takes_steps_from_the_same_weights(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[bool] = []

    def watched(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        before = [weight.detach().clone() for weight in model.parameters()]
        result = training_step(loss, model, optimizer)
        is_changed = [not torch.equal(*each) for each in zip(before, model.parameters(), strict=True)]
        changes.append(any(is_changed))
        return result

    monkeypatch.setattr(fine_tuning_steps, "training_step", watched)
    model = AutoModelForCausalLM.from_pretrained(PLANS["smoke"].model(tmp_path))
    ids = torch.randint(512, (2, 16))
    losses = {each.name: each.prepare().forward().item() for each in contenders(model, group, ids)}
    floor, _ = GROUPS[group]
    assert next(iter(losses)) == floor.label
    assert UNTOUCHED.label not in losses
    if group == "few parameters":
        assert {NORMS.label, LORA.label, CONSTANT.label, KEYS.label} < losses.keys()
    assert changes == [True] * len(losses)
    begun_as_it_was = [name for name in losses if "exclusive" not in name or "learned" in name]
    assert [losses[name] for name in begun_as_it_was] == pytest.approx([losses[floor.label]] * len(begun_as_it_was))


def test_the_table_says_tokens_a_second() -> None:
    case = {"subject": SUBJECT, "shape": "SmolLM2-135M", "tokens": 256, "batch": 2, "group": "all weights"}
    floor = {**case, "floor": ALL.label, "rounds": 3, "saved_bytes": None, "peak_bytes": None, "refused": None}
    rows = [
        {**floor, "contender": name, "passes": {"step": summarise_rounds(seconds, (4.0, 4.0, 4.0))}}
        for name, seconds in ((ALL.label, (4.0, 4.0, 4.0)), ("slower", (5.0, 6.0, 5.0)))
    ]
    record = {
        "command": "python -m evidence.benchmarks.fine_tuning_steps",
        "device": "cpu",
        "dtype": "float32",
        "machine": {"processor": "a CPU", "cores": 2, "torch": "2.13.0"},
        "git_revision": None,
        "rows": rows,
    }
    text = sections([record])["fine-tuning steps"]
    assert "| all weights | 1.000× (1.000–1.000) | 128 |" in text
    assert "| slower | 1.250× (1.250–1.375) | 102 |" in text
