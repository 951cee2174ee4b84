"""Size a comparison by time: measure some steps of every variant, then choose what all of them train on alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.files import read_object
from exsel.training.output_folder import RUNS, SETTINGS
from exsel.training.settings import COMPILED_STEPS, Settings, one_a_variant, schedule
from exsel.training.step_cost import STEPS, timed_steps

# Steps that are measured of each variant, after one that warms up; their median counts.
_MEASURED_STEPS = 3
# Fewer steps show nothing.
_FEWEST_STEPS = 20
# Of fewer steps a model has hardly learned, so that batches are halved first.
_ENOUGH_STEPS = 150
# The learning rate is that of whole batches: small runs with an eighth of a batch ended otherwise, with a quarter not.
_MOST_HALVINGS = 2
# What is planned of the time that is left: a machine is not equally fast all the time.
_SHARE = 0.85
# The most of the time that evaluations take, unless they are the fewest, and that trying compiled layers may take.
_EVALUATING, _COMPILING = 0.1, 0.15
# With fewer evaluations a report says that the trainings are too short to conclude from.
_FEWEST_EVALUATIONS, _FEWEST_BLOCKS = 6, 8
# A forward pass alone, as a share of a step.
_FORWARD = 1 / 3
# Blocks on which a run is evaluated at its end, beside the validation.
_BLOCKS_AT_END = 16

#: The settings that :func:`fit_minutes` chooses.
CHOSEN = ("tokens", "batch_size", "evaluations", "evaluation_blocks", "warmup_steps", "save_every", "compile")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The seconds of a step, and of all before it: building the model, compiling, warming up."""

    step: float
    start: float


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The steps of each run that the time allows, how they are evaluated, and the seconds of the fewest steps."""

    steps: int
    evaluations: int
    evaluation_blocks: int
    needed: float


def fit_minutes(
    runs: Sequence[Settings],
    data: PackedData,
    *,
    seconds_left: Callable[[], float],
    fixed: Sequence[str],
    note: Callable[[str], None],
) -> list[Settings]:
    """The runs with as many tokens each, all the same, as the time allows, and the schedule that fits them.

    A slow machine gets smaller batches where whole ones would make too few steps, and evaluates less often and on fewer
    blocks. Where eager runs would have so many steps that compiling may pay, compiled ones are tried, and what allows
    more steps is chosen.

    Args:
        runs, data: of a comparison.
        seconds_left: until the comparison should be over, as it is when called.
        fixed: names of settings that are not to be chosen.
        note: is told what is measured.

    Raises:
        ExselError: the time is too short.
    """
    begun = seconds_left()

    def plan(costs: Mapping[str, Cost]) -> _Plan:
        """What fits into the seconds if a step of each variant costs as much as measured."""
        first, seconds = runs[0], seconds_left()
        block = {name: cost.step * _FORWARD / first.batch_size for name, cost in costs.items()}
        budget = _EVALUATING * seconds / sum(block[run.variant.name] for run in runs)  # in evaluated blocks of a run
        blocks, evaluations = len(data.validation), first.evaluations
        if "evaluation_blocks" not in fixed:
            blocks = min(blocks, max(_FEWEST_BLOCKS, math.floor(budget / _FEWEST_EVALUATIONS)))
        if "evaluations" not in fixed:
            evaluations = min(evaluations, max(_FEWEST_EVALUATIONS, math.floor(budget / blocks)))
        evaluated = evaluations * blocks + _BLOCKS_AT_END + sum(len(each) for each, _ in data.evaluation_sets.values())
        names = [run.variant.name for run in runs]
        around = sum(costs[name].start + evaluated * block[name] for name in names)
        around += STEPS * sum(cost.step for cost in costs.values())
        step = sum(costs[name].step for name in names)
        return _Plan(
            steps=max(0, math.floor((_SHARE * seconds - around) / step)),
            evaluations=evaluations,
            evaluation_blocks=blocks,
            needed=(around + _FEWEST_STEPS * step) / _SHARE,
        )

    def measure(is_compiled: bool) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        for run in one_a_variant(runs):
            note(f"measuring {_MEASURED_STEPS} {'compiled ' if is_compiled else ''}steps of {run.variant.name} …")
            costs[run.variant.name] = cost = _measure(replace(run, compile=is_compiled), data)
            if is_compiled and "compile" not in fixed and cost.start * len(runs) > _COMPILING * seconds_left():
                return {}
        return costs

    is_compiled = "compile" in fixed and runs[0].compile
    note("measuring batches of several sizes …")
    sizes = [runs[0].batch_size]
    if "batch_size" not in fixed:
        while len(sizes) <= _MOST_HALVINGS and sizes[0] % (2 * runs[0].accumulation) == 0:
            sizes.insert(0, sizes[0] // 2)
    timed_steps(replace(runs[0], batch_size=sizes[0], compile=False), data, 1)  # imports what a first step does
    for batch_size in sizes:
        runs = [replace(run, batch_size=batch_size) for run in runs]
        cost = _measure(replace(runs[0], compile=is_compiled), data)
        chosen = plan({run.variant.name: cost for run in runs})
        if chosen.steps < 2 * _ENOUGH_STEPS:
            break
    if chosen.steps >= _FEWEST_STEPS:
        eager = measure(is_compiled)
        chosen = plan(eager)
        if "compile" not in fixed and chosen.steps >= COMPILED_STEPS and schedule(chosen.steps)["compile"]:
            compiled = measure(True)
            chosen = plan(eager)
            if compiled and plan(compiled).steps > chosen.steps:
                chosen, is_compiled = plan(compiled), True
    if chosen.steps < _FEWEST_STEPS:
        minutes = math.ceil((begun - seconds_left() + chosen.needed) / 60)
        raise ExselError(
            f"--minutes is too short: {len(runs)} runs of {_FEWEST_STEPS} steps, the fewest that show anything, take "
            f"about {minutes} minutes here; give more, or a smaller --model, --batch-size or --seq-len"
        )
    values = {
        **schedule(chosen.steps),
        "tokens": chosen.steps * runs[0].tokens_per_step,
        "batch_size": batch_size,
        "evaluations": chosen.evaluations,
        "evaluation_blocks": chosen.evaluation_blocks,
        "compile": is_compiled,
    }
    return [replace(run, **{name: value for name, value in values.items() if name not in fixed}) for run in runs]


def chosen_before(folder: Path) -> dict[str, Any] | None:
    """What :func:`fit_minutes` chose for the comparison in a folder; ``None`` if no run of it has begun."""
    path = next(iter(sorted(folder.glob(f"{RUNS}/*/{SETTINGS}"))), None)
    if path is None:
        return None
    content = read_object(path)
    if missing := [name for name in CHOSEN if name not in content]:
        raise ExselError(f"{path} lacks {missing[0]}: it is damaged; use another --out")
    return {name: content[name] for name in CHOSEN}


def _measure(settings: Settings, data: PackedData) -> Cost:
    """The cost of a step of a new model, which is gone afterwards."""
    torch.compiler.reset()  # each variant has graphs of its own
    start = time.perf_counter()
    _, *timed = timed_steps(settings, data, 1 + _MEASURED_STEPS)
    return Cost(step=statistics.median(timed), start=time.perf_counter() - start - sum(timed))
