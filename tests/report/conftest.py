from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from exsel.intervals import Estimate
from exsel.report.results_file import SCHEMA
from exsel.training.summary import StepCost, summarise, summarise_sweep
from exsel.variants import CHOOSING_SEED, VARIANTS

FINAL = {"baseline": 1.95, "exclusive": 1.66, "selective": 1.83, "exclusive+selective": 1.64, "constant": 1.9}
STEP_MS = {"baseline": 252.0, "exclusive": 257.0, "selective": 268.0, "exclusive+selective": 271.0, "constant": 260.0}
STEPS, EVALUATIONS, TOKENS_PER_STEP = 200, 20, 4096


@pytest.fixture
def make_results() -> Callable[..., dict[str, Any]]:
    return build_results


@pytest.fixture
def report(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    from exsel.report import write_report

    def write(results: dict[str, Any]) -> Path:
        path = tmp_path / "report.html"
        write_report(results, path)
        return path

    return write


def build_results(
    *,
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (3e-3,),
    layers: int = 4,
    final: dict[str, float] | None = None,
    noise: float = 0.02,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """A made-up comparison with the schema of results.json; `noise` is how much seeds differ."""
    ends = FINAL | (final or {})
    swept = len(rates) > 1
    made_of = {"layers": layers, "noise": noise, "texts": texts}
    choosing = [_run(name, CHOOSING_SEED, rate, ends[name], **made_of) for rate in rates for name in variants]
    sweep = summarise_sweep(choosing if swept else [])
    chosen = {row["variant"]: row["learning_rate"] for row in sweep if row["chosen"]}
    runs = [_run(name, seed, chosen.get(name, rates[0]), ends[name], **made_of) for name in variants for seed in seeds]
    rounds = [0.99, 1.0, 1.02, 0.995, 1.01]
    step_costs = {
        name: StepCost(
            milliseconds=STEP_MS[name],
            ratio=Estimate.of_ratios(*(noise * STEP_MS[name] / STEP_MS["baseline"] for noise in rounds)),
            rounds=len(rounds),
        )
        for name in variants
    }
    return {
        "schema": SCHEMA,
        "exsel_version": "0.1.0",
        "command": "exsel compare --variants baseline,exclusive,selective,exclusive+selective --out runs/demo",
        "started": "2026-11-22T08:00:00+00:00",
        "git_revision": "0f3c9a17be0d44c2a6f1f0a52c5f7d0a9b8e7c61",
        "config": {
            "model": "tiny",
            "tokens": STEPS * TOKENS_PER_STEP,
            "seq_len": 512,
            "batch_size": 8,
            "lr": list(rates),
            "seeds": list(seeds),
            "choosing_seeds": [CHOOSING_SEED] if swept else [],
            "dtype": "float32",
            "compile": True,
            "device": "cpu",
        },
        "data": {
            "name": "python-stdlib 3.11.2",
            "sha256": "9b1c0ff1a1f54a2f6f6a0e4e6a53c0b5f4b4d1f5a0a9f1f73c5e1d2c3b4a5968",
            "tokenizer": "bytes",
            "vocab_size": 259,
            "pack": "concat",
            "seq_len": 512,
            "train_documents": 540,
            "validation_documents": 61,
            "train_bytes": 11_234_567,
            "validation_bytes": 1_234_567,
            "train_tokens": 11_235_107,
            "validation_tokens": None,
            "bytes_per_token": 1.0,
        },
        "machine": {
            "platform": "Linux-6.1-x86_64",
            "processor": "x86_64",
            "cores": 2,
            "memory_bytes": 16 * 2**30,
            "device": "cpu",
            "python": "3.11.2",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "exsel": "0.1.0",
        },
        "model": {
            "name": "tiny",
            "parameters": 1_823_424,
            "num_hidden_layers": layers,
            "hidden_size": 192,
            "num_attention_heads": 6,
            "head_dim": 32,
        },
        "variants": summarise(runs, TOKENS_PER_STEP, step_costs),
        "sweep": sweep,
        "runs": runs,
        "choosing_runs": choosing if swept else [],
    }


def _buckets(loss: float, length: int) -> list[dict[str, Any]]:
    firsts = [2**power for power in range(int(math.log2(length)))]
    return [{"first": first, "last": 2 * first - 1, "loss": loss + 2 / (1 + first)} for first in firsts]


def _run(
    name: str, seed: int, rate: float, end: float, *, layers: int, noise: float, texts: Sequence[str]
) -> dict[str, Any]:
    end += noise * math.sin(7.0 * seed + len(name)) + 0.25 * abs(math.log10(rate / 3e-3))
    speed = 1 + 0.01 * math.cos(3.0 * seed)
    curve = []
    for index in range(EVALUATIONS + 1):
        share = index / EVALUATIONS
        loss = end + (5.56 - end) * (math.exp(-7 * share) - math.exp(-7) * share) - 0.25 * share * (1 - share)
        step = round(share * STEPS)
        curve.append(
            {
                "step": step,
                "tokens": step * TOKENS_PER_STEP,
                "seconds": step * STEP_MS[name] * speed / 1000,
                "loss": loss,
            }
        )
    exclusive, new = name.startswith("exclusive"), 4608 if "selective" in name else 0
    similarity = []
    for layer in range(layers):
        bias = 0.18 + 0.5 * (layer + 1) / layers + 0.05 * math.sin(1.3 * layer + len(name))
        similarity.append(
            {
                "layer": layer,
                "output": 1e-9 if exclusive else bias,
                "before_exclusion": bias - 0.1 if exclusive else None,
            }
        )
    numbers = {"mean": 1.02, "over_tokens": 0.03, "over_heads": 0.01, "moved": 0.05}
    temperatures = [
        {"module": f"layers.{layer}", "kind": kind, **numbers}
        for layer in range(layers if "selective" in name else 0)
        for kind in ("query", "value")
    ]
    return {
        "variant": name,
        "seed": seed,
        "learning_rate": rate,
        "directory": f"{name}/seed-{seed}",
        "loss": curve[-1]["loss"],
        "bits_per_byte": curve[-1]["loss"] / math.log(2),
        "parameters": 1_823_424 + new,
        "new_parameters": new,
        "steps": STEPS,
        "tokens": STEPS * TOKENS_PER_STEP,
        "train_seconds": curve[-1]["seconds"],
        "compile_seconds": 13.2,
        "ms_per_step": STEP_MS[name],
        "peak_memory_bytes": 812 * 2**20,
        "train_curve": curve,
        "validation_curve": curve,
        "by_position": _buckets(end, 512),
        "longer": {"length": 2048, "by_position": _buckets(end, 2048), "reason": None},
        "evaluation_sets": {
            text: {"loss": end + 1, "bits_per_byte": end, "by_position": _buckets(end + 1, 512)} for text in texts
        },
        "similarity": similarity,
        "samples": [{"prompt": "once upon", "continuation": f" {name}", "text": " a time"}],
        "temperatures": temperatures,
    }
