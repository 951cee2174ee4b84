"""What a training step of each variant costs: measured apart from the trainings, all variants in turn, in rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from exsel.data import PackedData
from exsel.float32_products import fast_products
from exsel.intervals import Estimate
from exsel.training.run import first_batch, layers_to_compile
from exsel.training.run_model import build_model
from exsel.training.settings import Settings, one_a_variant
from exsel.training.summary import StepCost
from exsel.training.training_step import training_step
from exsel.variants import BASELINE

_ROUNDS = 5
# Of each variant in each round, after one that warms up.
_TIMED_STEPS = 2

#: The steps of each variant that :func:`step_costs` takes.
STEPS = _ROUNDS * (1 + _TIMED_STEPS)


def step_costs(runs: Sequence[Settings], data: PackedData) -> dict[str, StepCost]:
    """The cost of a step of each variant, by name.

    In each round every variant takes some steps (forward, backward, clipping, AdamW) on the same batch, in one process,
    in an order that turns from round to round; its time is divided by the baseline's of the same round. So a machine
    that slows down slows all of them, and a round that something else disturbs is one of several.
    """
    variants = one_a_variant(runs)
    seconds: dict[str, list[float]] = {run.variant.name: [] for run in variants}
    torch.compiler.reset()
    # Each variant has graphs of its own, more together than PyTorch keeps of one layer.
    with torch._dynamo.config.patch(recompile_limit=8 * len(variants)):
        for turn in range(_ROUNDS):
            start = turn % len(variants)
            for run in (*variants[start:], *variants[:start]):
                _, *timed = timed_steps(run, data, 1 + _TIMED_STEPS)
                seconds[run.variant.name].append(statistics.median(timed))
    floor = seconds.get(BASELINE)
    costs = {}
    for name, own in seconds.items():
        milliseconds, ratio = statistics.median(own) * 1e3, None
        if floor is not None:
            ratio = Estimate.of_ratios(*(one / other for one, other in zip(own, floor, strict=True)))
            # In milliseconds too a variant is as far from the baseline as in the same rounds.
            milliseconds = statistics.median(floor) * 1e3 * ratio.mean
        costs[name] = StepCost(milliseconds=milliseconds, ratio=ratio, rounds=_ROUNDS)
    return costs


def timed_steps(settings: Settings, data: PackedData, count: int) -> list[float]:
    """The seconds of each step of a new model, which is gone afterwards; the first one warms up, and may compile."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    model = build_model(settings, data).to(device).train()
    if settings.compile:
        for layer in layers_to_compile(model):
            layer.compile()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.0, fused=True)
    batch = first_batch(data, settings.micro_batch_size, device)
    steps = []
    with fast_products(settings.device):  # as in the training
        for _ in range(count):
            start = time.perf_counter()
            for micro_batch in range(settings.accumulation):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = model(**batch).loss
                if micro_batch < settings.accumulation - 1:
                    loss.backward()
            training_step(loss, model, optimizer)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            steps.append(time.perf_counter() - start)
    return steps
