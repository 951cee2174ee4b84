from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from torch import Tensor, nn

import exsel
from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.training.model_checks import check_new_models
from exsel.training.new_models import new_model
from exsel.training.own_model import OwnModel, find_factory
from exsel.variants import VARIANTS, choose_variants
from training.small_runs import Watcher, interrupted, metrics, small_data, small_settings, train, without_times

WIDTH, HEADS = 16, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv = HEADS, nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


class Own(nn.Module):
    """Tied weights, dropout, a fused projection: gives logits alone."""

    def __init__(self, vocab_size: int, causal: bool = True) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(vocab_size, WIDTH), nn.Linear(WIDTH, vocab_size, bias=False)
        self.layers, self.dropout, self.causal = nn.ModuleList([Attention(), Attention()]), nn.Dropout(0.1), causal
        self.head.weight = self.tokens.weight

    def logits(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for layer in self.layers:
            x = x + self.dropout(layer(x, self.causal))
        return self.head(x)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Any:
        return self.logits(ids)


class Targets(Own):
    """As nanoGPT: with targets all logits and a loss, without them those of the last token."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.logits(ids)
        if targets is None:
            return logits[:, -1:], None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Labels(Own):
    """As transformers: the labels are the ids, shifted here."""

    shift = 1

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        logits = self.logits(ids)
        seen = logits[:, : logits.shape[1] - self.shift]
        return {"loss": F.cross_entropy(seen.flatten(0, 1), labels[:, self.shift :].flatten()), "logits": logits}


class Copying(Labels):
    shift = 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_the_whole_one(data: PackedData, tmp_path: Path, variant: str) -> None:
    settings = small_settings(Own, variant=variant)
    whole = train(settings, data, tmp_path / "whole")
    stop = Watcher(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert interrupted(settings, data, tmp_path / "run", stop).step == 6
    resumed = train(settings, data, tmp_path / "run", resume=True)
    assert resumed["loss"] == whole["loss"] < metrics(tmp_path / "whole")[0]["loss"]
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    # What is saved is the user's module, under its own names.
    again = Own(data.description.vocab_size)
    if variant != "baseline":
        exsel.upgrade(again, **choose_variants([variant])[0].mechanisms)
    load_model(again, tmp_path / "run" / "model" / "model.safetensors")


@pytest.mark.parametrize("build", [Own, Targets, Labels])
def test_every_way_to_give_a_loss_gives_the_same(
    data: PackedData, tmp_path: Path, build: Callable[..., nn.Module]
) -> None:
    settings = small_settings(build)
    check_new_models([settings], data)
    train(settings, data, tmp_path / "run")
    train(small_settings(Own), data, tmp_path / "own")
    losses = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("run", "own"))
    assert next(losses) == pytest.approx(next(losses), rel=1e-5)


def test_variants_share_their_weights(data: PackedData) -> None:
    plain, *others = (
        new_model(small_settings(Own, variant=name, selective={"token": "mlp"}), 259) for name in VARIANTS
    )
    for other in others:
        for name, weights in plain.state_dict().items():
            assert torch.equal(weights, other.state_dict()[name])


def _unseeded(vocab_size: int) -> nn.Module:
    model = Own(vocab_size)
    generator = torch.Generator()
    generator.seed()
    nn.init.normal_(model.head.weight, generator=generator)
    return model


ONE = Own(259)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Copying, "the loss of Copying compares each token with itself"),
        (lambda vocab_size: Own(vocab_size, causal=False), "in this Own tokens see those after them"),
        (lambda: Own(100), "index out of range"),
        (lambda vocab_size: nn.Sequential(nn.Embedding(vocab_size, 8)), "it gives 8 logits, and the tokenizer has 259"),
        (
            lambda vocab_size: nn.EmbeddingBag(vocab_size, 8),
            "must give logits of [B, T, V] for ids of [1, 32]; got None",
        ),
        (lambda width: Own(width), "missing a required argument: 'width': it may take vocab_size and seq_len"),
        (lambda: 3, "must return a torch.nn.Module, and returned int"),
        (lambda: 1 / 0, "cannot build its model: ZeroDivisionError"),
        (_unseeded, "has different weights at the same seed"),
        (lambda: ONE, "hands out the same weights twice"),
    ],
)
def test_models_that_cannot_be_compared(data: PackedData, build: Callable[..., Any], message: str) -> None:
    with pytest.raises(ExselError, match=re.escape(message)):
        check_new_models([small_settings(build)], data)


def test_positions_that_it_does_not_take(corpus: Path) -> None:
    data = small_data(corpus, pack="isolate")
    with pytest.raises(ExselError, match="Own takes no position_ids, which keep documents apart: use --pack concat"):
        check_new_models([small_settings(Own, pack="isolate")], data)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a_model_of_mine.py"
    path.write_text("from training.test_own_model import Own as build\nthing = 3\n")
    return path


@pytest.mark.parametrize("place", ["a_model_of_mine", "a_model_of_mine.py"])
def test_a_function_has_a_name(module: Path, place: str) -> None:
    assert find_factory(f"{place}:build").__name__ == "Own"
    for name, message in (("thing", "has no function 'thing'"), ("none", "has no function 'none'")):
        with pytest.raises(ExselError, match=message):
            find_factory(f"{place}:{name}")


@pytest.mark.parametrize("place", ["no_module_of_mine", "no_file.py"])
def test_a_place_that_is_not_there(place: str) -> None:
    with pytest.raises(ExselError, match=f"--model {place}:build cannot be imported: no "):
        find_factory(f"{place}:build")


GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
GEMMA = {
    "model_type": "gemma2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


@pytest.mark.parametrize("values", [GPT2, GEMMA], ids=["gpt2", "gemma2"])
def test_any_configuration_of_transformers(data: PackedData, tmp_path: Path, values: dict[str, Any]) -> None:
    settings = small_settings(values, variant="exclusive+selective")
    check_new_models([settings], data)
    plain = new_model(dataclasses.replace(settings, variant=VARIANTS["baseline"]), 259, data.tokenizer)
    whole = train(settings, data, tmp_path / "whole")
    stop = Watcher(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert interrupted(settings, data, tmp_path / "run", stop).step == 6
    assert train(settings, data, tmp_path / "run", resume=True)["loss"] == whole["loss"]
    loaded = exsel.from_pretrained(tmp_path / "run" / "model")
    assert plain.state_dict().keys() < loaded.state_dict().keys()
    assert loaded.config.vocab_size == 259
    assert not isinstance(loaded, OwnModel)
