"""A corpus, a model and runs small enough to train in a blink."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from exsel.data import PackedData, load_data
from exsel.training.progress import Progress
from exsel.training.run import Interrupted, train_run
from exsel.training.run_model import build_model
from exsel.training.settings import Settings
from exsel.variants import choose_variants

SEQ_LEN = 32
MODEL = {
    "model_type": "exsel",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def write_corpus(folder: Path, *, documents: int = 24, words: int = 60) -> Path:
    """Text files of which some train and some validate."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    vocabulary = ["over", "the", "lazy", "dog", "a", "quick", "brown", "fox", "jumps", "höher"]
    for index in range(documents):
        text = " ".join(generator.choice(vocabulary) for _ in range(words))
        (folder / f"{index:02}.txt").write_text(f"{index}: {text}.\n", encoding="utf-8")
    return folder


def write_model(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**MODEL, **changes}))
    return path


def small_settings(model: Any, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "variant": "baseline",
        "seed": 0,
        "learning_rate": 1e-2,
        "model": str(model) if isinstance(model, Path) else model,
        "tokens": 12 * 4 * SEQ_LEN,
        "seq_len": SEQ_LEN,
        "batch_size": 4,
        "warmup_steps": 2,
        "evaluations": 3,
        "evaluation_blocks": 8,
        "save_every": 4,
        "compile": False,
    }
    values |= changes
    configs = {name: values.pop(name) for name in ("exclusive", "selective") if name in values}
    return Settings(**{**values, "variant": choose_variants([values["variant"]], **configs)[0]})


def small_data(corpus: Path, *, pack: str = "concat", seq_len: int = SEQ_LEN) -> PackedData:
    return load_data([str(corpus)], seq_len=seq_len, pack=pack, validation_blocks=8)


class Watcher(Progress):
    """A progress display that keeps what it is told, and does something after a step."""

    def __init__(self, after: int | None = None, action: Callable[[], None] | None = None) -> None:
        self.after = after
        self.action = action
        self.starts: list[tuple[str, int, int]] = []
        self.steps: list[int] = []
        self.notes: list[str] = []

    def start(self, name: str, steps: int, done: int) -> None:
        self.starts.append((name, steps, done))

    def advance(self, step: int, loss: float, validation_loss: float | None, tokens_per_second: float) -> None:
        self.steps.append(step)
        if step == self.after and self.action is not None:
            self.action()

    def note(self, text: str) -> None:
        self.notes.append(text)


def train(
    settings: Settings, data: PackedData, folder: Path, *, progress: Watcher | None = None, resume: bool = False
) -> dict[str, Any]:
    return train_run(settings, data, folder, name="run", progress=progress or Watcher(), resume=resume)


def interrupted(
    settings: Settings, data: PackedData, folder: Path, progress: Watcher, *, resume: bool = False
) -> Interrupted:
    """Train with a progress that interrupts."""
    try:
        train(settings, data, folder, progress=progress, resume=resume)
    except Interrupted as stop:
        return stop
    raise AssertionError("the run was not interrupted")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict[str, Any]]:
    """The record of a run, less what the clock said."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics(folder)]


def everything_at_once(model: Path, **changes: Any) -> Settings:
    """Both mechanisms, accumulation and activation checkpointing: what several processes must not change."""
    values = {"variant": "exclusive+selective", "accumulation": 2, "activation_checkpointing": True, **changes}
    return small_settings(model, **values)


def float64_model(settings: Settings, data: PackedData) -> Any:
    model = build_model(settings, data).double()
    model.loss_function = _float64_loss  # transformers' own is in float32
    return model


def _float64_loss(logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None, **_: Any) -> Tensor:
    losses = F.cross_entropy(logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1), reduction="sum")
    return losses / (1 if num_items_in_batch is None else num_items_in_batch)
