"""What a step costs of each way to train a real model on, in one process and in turn, on the CPU.

    python -m evidence.benchmarks.fine_tuning_steps [--rounds N]

SmolLM2-135M, eager, on as many tokens as the experiments of :mod:`evidence.papers.fine_tuning` take on a CPU: forward,
backward, clipping and Adam. About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import exsel
from evidence.benchmarks.cpu_rows import keep_rows
from evidence.papers.fine_tuning import (
    ALL,
    ALL_WEIGHTS,
    CONTROLS,
    EXCLUSION,
    NEW_PARAMETERS,
    NORMS,
    PLANS,
    RATES,
    TERMS,
    UNTOUCHED,
    Tuning,
    make_optimizer,
    prepare,
)
from exsel.bench.measuring import Contender, CpuClock, Work, measure
from exsel.cli.display import activity
from exsel.float32_products import fast_products
from exsel.training.training_step import training_step
from exsel.upgrading.loading import quiet_transformers

SUBJECT = "fine-tuning step"
_PATH = Path(__file__).parent / "results" / "fine_tuning_steps_cpu.json"
#: What is compared: by its name the ways of a group, and the one that the others are divided by.
GROUPS: dict[str, tuple[Tuning, Sequence[Tuning]]] = {
    "few parameters": (
        NORMS,
        [way for question in (NEW_PARAMETERS, CONTROLS, TERMS, EXCLUSION) for way in question.ways],
    ),
    "all weights": (ALL, ALL_WEIGHTS.ways),
}


def contenders(model: PreTrainedModel, group: str, ids: Tensor) -> list[Contender]:
    """A step of each way of a group on ``ids [B, T]``; the floor in front."""
    floor, ways = GROUPS[group]

    def work(way: Tuning) -> Work:
        own = copy.deepcopy(model)
        rates = {each.name: RATES[each.own][0] for each in (way, way.beside) if each}
        optimizer = make_optimizer(prepare(own, way, rates))
        own.train()
        return Work(
            forward=lambda: training_step(own(input_ids=ids, labels=ids, use_cache=False).loss, own, optimizer),
            name="step",
        )

    named = {way.name: way for way in (floor, *ways) if way is not UNTOUCHED}
    return [
        Contender(name=way.label, group=group, floor=(group, floor.label), prepare=functools.partial(work, way))
        for way in named.values()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    arguments = parser.parse_args()
    plan = PLANS["cpu"]
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(exsel.pull("smollm2"), dtype=torch.float32)
    ids = torch.randint(model.config.vocab_size, (plan.batch_size, plan.seq_len))
    described = {"subject": SUBJECT, "shape": "SmolLM2-135M", "tokens": plan.seq_len, "batch": plan.batch_size}
    rows: list[dict[str, Any]] = []
    with activity() as say, fast_products("cpu"):
        for group in GROUPS:
            say(f"a step of {group}")
            measured = measure(
                contenders(model, group, ids),
                clock=CpuClock(),
                device=torch.device("cpu"),
                rounds=arguments.rounds,
                say=say,
            )
            rows += [{**described, **row} for row in measured]
    keep_rows(_PATH, "evidence.benchmarks.fine_tuning_steps", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
