"""What :func:`exsel.diagnose` sees in trained variants, layer by layer and over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import exsel
from evidence.papers.model_variants import ModelVariant
from evidence.papers.outcome import Job
from evidence.papers.variant_runs import SIZES, TrainedRun, describe_size, train_variant
from exsel.data import collate
from exsel.intervals import Estimate
from exsel.report.charts import Curve

# Validation sequences of a diagnosis, by budget.
_SEQUENCES = {"smoke": 2, "cpu": 16, "gpu": 64}

#: The ``layers`` of one model's diagnosis, as JSON types.
Layers = Sequence[Mapping[str, Any]]


def diagnose_variant(job: Job, variant: ModelVariant) -> list[Layers]:
    """The layers of the variant's diagnosis, a model a seed."""
    watched = []
    for seed in job.seeds:
        run = train_variant(job, variant, seed=seed)
        diagnosis = exsel.diagnose(run.load().to(job.device), validation_batches(job, run))
        watched.append(diagnosis.to_dict()["layers"])
    return watched


def validation_batches(job: Job, run: TrainedRun) -> list[dict[str, Tensor]]:
    """Validation sequences, one a batch."""
    validation = run.data.validation
    rows = [validation[index] for index in range(min(_SEQUENCES[job.budget], len(validation)))]
    return [{"input_ids": collate([row])["input_ids"].to(job.device)} for row in rows]


def watched_size(job: Job) -> str:
    """What was looked at, in words."""
    watched = f"{_SEQUENCES[job.budget]} validation sequences of {SIZES[job.budget].seq_len} tokens"
    return f"{describe_size(job)}; watched on {watched}"


def layer_means(models: Sequence[Layers], metric: str) -> list[Estimate]:
    """Layer by layer, over the seeds."""
    return [
        Estimate.of(*(layers[index]["metrics"][metric]["mean"] for layers in models)) for index in range(len(models[0]))
    ]


def overall_mean(models: Sequence[Layers], metric: str) -> Estimate:
    """The mean over the layers, over the seeds."""
    return Estimate.of(*(statistics.fmean(layer["metrics"][metric]["mean"] for layer in layers) for layers in models))


def quotient(left: Estimate, right: Estimate) -> Estimate:
    """``left`` over ``right``, seed by seed."""
    return Estimate.of(*(a / b for a, b in zip(left.values, right.values, strict=True)))


def layer_curve(label: str, models: Sequence[Layers], metric: str, *, dashed: bool = False) -> Curve:
    """A metric against the layer, with its interval."""
    estimates = layer_means(models, metric)
    return Curve.of(label, range(len(estimates)), estimates, style="dashed" if dashed else "line")
