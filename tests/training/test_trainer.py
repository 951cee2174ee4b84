from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainingArguments

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.data import PackedData, collate
from exsel.models import ExselForCausalLM
from exsel.training.mechanism_parameters import mechanism_parameters, scalar_names
from exsel.training.run import build_model
from exsel.training.step_record import StepRecord
from exsel.training.trainer import BlockOrder, ExselTrainer
from training.small_runs import Watcher, metrics, small_data, small_settings, train


def groups(model: ExselForCausalLM, folder: Path) -> list[dict[str, Any]]:
    arguments = TrainingArguments(
        output_dir=str(folder), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to="none"
    )
    record = StepRecord(folder=folder)
    trainer = ExselTrainer(
        model=model, args=arguments, token_learning_rate=0.5, position_learning_rate=0.25, record=record
    )
    return trainer.create_optimizer().param_groups


@pytest.mark.parametrize("token", ["shared", "mlp", "frequency", "none"])
def test_parameter_groups(model_file: Path, data: PackedData, tmp_path: Path, token: str) -> None:
    settings = small_settings(
        model_file,
        variant="exclusive+selective",
        exclusive=ExclusiveConfig(strength="learned"),
        selective=SelectiveConfig(token=token, key=True),  # type: ignore[arg-type]
    )
    model = build_model(settings, data)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in groups(model, tmp_path):
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = (group["lr"], group["weight_decay"])
    assert found.keys() == set(names.values())
    for name, kind in found.items():
        if ".feature_proj." in name:  # an MLP's own W' is a matrix like any other
            expected = (1e-3, 0.1)
        elif name.endswith("position_logit"):
            expected = (0.25, 0.0)
        elif "temperatures" in name or "exclusive" in name:
            expected = (0.5, 0.0)
        elif "norm" in name:
            expected = (1e-3, 0.0)
        else:
            expected = (1e-3, 0.1)
        assert kind == expected, name
    assert {name for name, kind in found.items() if kind in ((0.5, 0.0), (0.25, 0.0))} == scalar_names(model)
    assert sum(value.numel() for value in mechanism_parameters(model).values()) == sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "temperatures" in name or "exclusive" in name
    )


def test_a_plain_model_has_no_scalars(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    model = build_model(small_settings(model_file), data)
    assert scalar_names(model) == set()
    assert mechanism_parameters(model) == {}
    assert [group["lr"] for group in groups(model, tmp_path)] == [1e-3, 1e-3]


def test_step_losses_take_whole_steps_off() -> None:
    record = StepRecord(folder=Path(), losses=[torch.tensor(value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)])
    assert record.take_losses(2) == [3.0, 7.0]
    assert record.losses == [torch.tensor(5.0)]
    assert record.take_losses(2) == []
    assert StepRecord(folder=Path()).take_losses(1) == []


def mean_loss(model: nn.Module, rows: list[Any]) -> float:
    """By hand in float64: the mean over the tokens that are predicted."""
    batch = collate(rows)
    labels = batch.pop("labels")[:, 1:]
    model.eval()
    with torch.no_grad():
        logits = model.double()(**batch).logits[:, :-1]
    return float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))


@pytest.mark.parametrize("pack", ["concat", "isolate"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_first_loss_on_record_is_that_of_the_first_blocks(
    model_file: Path, corpus: Path, tmp_path: Path, pack: str, accumulation: int
) -> None:
    data = small_data(corpus, pack=pack)
    settings = small_settings(model_file, pack=pack, accumulation=accumulation, variant="selective", seed=3)
    model = build_model(settings, data)
    train(settings, data, tmp_path / "run")
    rows = [data.train[index] for index in BlockOrder(len(data.train), length=4, seed=3)]
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(mean_loss(model, rows), abs=1e-5)


def test_accumulation_changes_nothing_but_rounding(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    losses = {}
    for accumulation in (1, 2, 4):
        settings = small_settings(model_file, accumulation=accumulation)
        train(settings, data, tmp_path / str(accumulation))
        lines = metrics(tmp_path / str(accumulation))
        assert [line["step"] for line in lines] == list(range(1, 13))
        losses[accumulation] = np.array([line["loss"] for line in lines])
    assert np.abs(losses[2] - losses[1]).max() < 1e-3
    assert np.abs(losses[4] - losses[1]).max() < 1e-3
    assert losses[1][-1] < losses[1][0] - 0.5


def test_learning_rate_on_record_is_that_of_the_step(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    train(small_settings(model_file, warmup_steps=2), data, tmp_path / "run")
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run")]
    assert rates[:3] == pytest.approx([0.0, 0.5e-2, 1e-2])
    # A cosine to a tenth: after step 1 + n of 10 that follow the warm-up, n = 0 … 9.
    expected = [1e-2 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * n / 10))) for n in range(10)]
    assert rates[2:] == pytest.approx(expected)


def test_seconds_are_training_time_alone(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    import time

    result = train(
        small_settings(model_file), data, tmp_path / "run", progress=Watcher(after=6, action=lambda: time.sleep(0.5))
    )
    assert result["train_seconds"] < 0.5 + 12 * 0.3
    gaps = np.diff([0.0, *(line["seconds"] for line in metrics(tmp_path / "run"))])
    assert gaps.min() > 0
    assert gaps[6] < 0.5


PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}


def test_nothing_is_pickled(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    seen: set[str] = set()

    def look() -> None:
        seen.update(path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file())
        assert any((tmp_path / "run").glob("checkpoint-*/optimizer.safetensors"))

    train(small_settings(model_file), data, tmp_path / "run", progress=Watcher(after=6, action=look))
    seen.update(path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert ".safetensors" in seen
    assert not seen & PICKLES
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(path.read_bytes().startswith((b"PK\x03\x04", b"\x80\x02")) for path in files)
