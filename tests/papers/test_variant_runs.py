from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evidence.papers.model_variants import (
    BASELINE,
    EXCLUSIVE,
    FREQUENCY,
    LEARNED_STRENGTH,
    OUTPUT_GATE,
    SCALABLE_SOFTMAX,
    ModelVariant,
    sinks,
)
from evidence.papers.outcome import Job
from evidence.papers.variant_runs import SIZES, TrainedRun, describe_size, train_variant, training_text
from exsel.evaluation import evaluate_loss
from exsel.training.run import Interrupted
from papers.trainings import make_job
from training.small_runs import Watcher


def train(job: Job, variant: ModelVariant = BASELINE, *, seed: int = 0) -> TrainedRun:
    return train_variant(job, variant, seed=seed)


def test_a_run_is_trained_once(tmp_path: Path) -> None:
    progress = Watcher()
    job = make_job(tmp_path, progress=progress)
    first = train(job)
    assert progress.starts == [("baseline, seed 0", 4, 0)]
    second = train(job)
    assert len(progress.starts) == 1
    assert second.result == first.result
    assert first.loss == first.result["validation_curve"][-1]["loss"]
    assert [point["tokens"] for point in first.result["validation_curve"]] == [128, 256]


def test_a_finished_run_is_found_where_its_folder_was_moved(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    loss = train(job).loss
    shutil.move(job.folder, tmp_path / "elsewhere")
    progress = Watcher()
    moved = replace(job, folder=tmp_path / "elsewhere", progress=progress)
    assert train(moved).loss == loss
    assert progress.starts == []


@pytest.mark.parametrize("variant", [FREQUENCY, sinks(2).with_exclusive(), OUTPUT_GATE, SCALABLE_SOFTMAX])
def test_a_loaded_model_is_the_trained_one(tmp_path: Path, variant: ModelVariant) -> None:
    run = train(make_job(tmp_path), variant)
    model = run.load()
    assert not model.training
    evaluation = evaluate_loss(model, run.data.validation, batch_size=2, device=torch.device("cpu"))
    assert evaluation.loss == run.loss


def test_whatever_differs_has_a_folder_of_its_own(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "corpus" / "more").mkdir()
    shutil.copy(tmp_path / "corpus" / "00.txt", tmp_path / "corpus" / "more")
    runs = [
        train(job),
        train(job, LEARNED_STRENGTH),
        train(job, seed=1),
        train_variant(job, BASELINE, seed=0, learning_rate=1e-3),
        train_variant(job, BASELINE, seed=0, seq_len=16),
        train_variant(job, BASELINE, seed=0, size=replace(SIZES["smoke"], layers=1)),
        train(replace(job, data=(*job.data, str(tmp_path / "corpus" / "more")))),
    ]
    assert len({run.folder for run in runs}) == len(runs)
    assert runs[3].result["learning_rate"] == 1e-3
    assert runs[4].settings.batch_size * runs[4].settings.seq_len == runs[0].settings.batch_size * 32
    assert runs[4].result["tokens"] == runs[0].result["tokens"]


def test_variants_begin_alike_and_read_the_same(tmp_path: Path) -> None:
    """A learned strength starts as plain attention: its first steps' losses are the baseline's."""
    job = make_job(tmp_path)
    plain, learned = (train(job, variant).result["train_curve"][0]["loss"] for variant in (BASELINE, LEARNED_STRENGTH))
    assert learned == pytest.approx(plain, rel=1e-6)
    assert train(job, seed=1).result["train_curve"][0]["loss"] != plain


@pytest.mark.parametrize("variant", [EXCLUSIVE, sinks(1)])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, variant: ModelVariant) -> None:
    whole = train(make_job(tmp_path / "whole"), variant)
    stopper = Watcher(after=1, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    job = make_job(tmp_path / "stopped", progress=stopper)
    with pytest.raises(Interrupted):
        train(job, variant)
    shutil.move(job.folder, tmp_path / "moved")
    progress = Watcher()
    again = train(replace(job, folder=tmp_path / "moved", progress=progress), variant)
    # What was put in has no place in a checkpoint's configuration: such a run begins anew.
    assert [done for _, _, done in progress.starts] == [0 if variant.addition else 2]
    assert again.loss == whole.loss


def test_a_length_must_divide_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seq_len must divide the 64 tokens of a step, got 48"):
        train_variant(make_job(tmp_path), BASELINE, seed=0, seq_len=48)


def test_the_text_of_a_job(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert training_text(job) == job.data
    assert training_text(replace(job, data=())) == ()
    on_gpu = training_text(replace(job, data=(), budget="gpu", device="cuda"))
    assert all(Path(folder).is_dir() for folder in on_gpu)
    assert training_text(replace(job, budget="gpu")) == job.data


def test_the_size_in_words(tmp_path: Path) -> None:
    job = make_job(tmp_path, seeds=(0, 1))
    said = describe_size(job)
    assert said.startswith("2 layers of width 32, heads of 16, 256 tokens in 4 steps of 2 × 32, learning rate 0.003")
    assert said.endswith("corpus, a byte a token; 2 seeds on cpu")
    assert "standard library" in describe_size(replace(job, data=()))
    assert "source of transformers and sympy" in describe_size(replace(job, data=(), budget="gpu"))


def test_sizes_are_possible() -> None:
    for size in SIZES.values():
        assert size.width % size.head_dim == 0
        assert size.evaluation_tokens >= size.seq_len
        assert size.steps >= size.evaluations
