"""Jobs over a small corpus, and results of trainings that never took place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evidence.papers import comparing
from evidence.papers.model_variants import ModelVariant
from evidence.papers.outcome import Job
from training.small_runs import Watcher, write_corpus


def make_job(folder: Path, *, seeds: tuple[int, ...] = (0,), progress: Watcher | None = None) -> Job:
    """A job of seconds, on a corpus beside its runs."""
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus)
    return Job(
        budget="smoke",
        device="cpu",
        seeds=seeds,
        data=(str(corpus),),
        folder=folder / "experiments",
        progress=progress or Watcher(),
    )


def invented(loss: float, *, parameters: int = 100, ms_per_step: float = 10.0, points: int = 4) -> dict[str, Any]:
    """A result whose validation loss falls by a straight line from ``loss`` + 1."""
    curve = [
        {"step": point, "tokens": 1000 * point, "seconds": 2.0 * point, "loss": loss + 1 - point / points}
        for point in range(1, points + 1)
    ]
    return {
        "loss": loss,
        "parameters": parameters,
        "ms_per_step": ms_per_step,
        "tokens": 1000 * points,
        "train_seconds": 2.0 * points,
        "validation_curve": curve,
    }


def invent(monkeypatch: pytest.MonkeyPatch, losses: dict[str, float], *, otherwise: float = 2.0) -> list[str]:
    """Have every training end at the loss of its variant, a little different from seed to seed.

    Returns:
        The names of the variants as they are trained.
    """
    trained: list[str] = []

    def train(job: Job, variant: ModelVariant, *, seed: int, **changes: Any) -> Any:
        trained.append(variant.name)
        noise = 0.01 * seed + 0.0001 * (seed % 2) * len(variant.name)
        return SimpleNamespace(result=invented(losses.get(variant.name, otherwise) + noise))

    monkeypatch.setattr(comparing, "train_variant", train)
    return trained
