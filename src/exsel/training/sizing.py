"""Size a comparison by time: measure some steps of every variant, then choose the tokens that all of them train on."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.files import read_object
from exsel.training.output_folder import RUNS, SETTINGS
from exsel.training.progress import Progress
from exsel.training.run import Interrupted, train_run
from exsel.training.settings import COMPILED_STEPS, Settings, one_a_variant, schedule
from exsel.training.step_cost import STEPS

# Steps that are measured of each variant; their median counts.
_MEASURED_STEPS = 5
# Fewer steps show nothing.
_FEWEST_STEPS = 20
# What is planned of the time that is left: a machine is not equally fast all the time.
_SHARE = 0.85
# A forward pass alone, as a share of a step.
_FORWARD = 1 / 3

#: The settings that :func:`fit_minutes` chooses.
CHOSEN = ("tokens", "warmup_steps", "save_every", "compile")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The seconds of a run: of a step, and of all else, with one evaluation: building, compiling, saving."""

    step: float
    around: float


def fit_minutes(
    runs: Sequence[Settings],
    data: PackedData,
    *,
    seconds_left: Callable[[], float],
    fixed: Sequence[str],
    note: Callable[[str], None],
) -> list[Settings]:
    """The runs with as many tokens each, all the same, as the time allows, and the schedule that fits them.

    Whether layers are compiled is measured, too: where eager runs would have so many steps that compiling may pay,
    compiled ones are tried, and what allows more steps is chosen.

    Args:
        runs: of a comparison.
        data: loaded as they say.
        seconds_left: until the comparison should be over, as it is when called.
        fixed: names of settings that are not to be chosen.
        note: is told what is measured.

    Raises:
        ExselError: the time is too short.
    """
    is_compiled = runs[0].compile if "compile" in fixed else False
    steps, needed = _steps(runs, data, is_compiled, seconds_left, note)
    if "compile" not in fixed and steps >= COMPILED_STEPS and schedule(steps)["compile"]:
        compiled, _ = _steps(runs, data, True, seconds_left, note)
        steps, is_compiled = (compiled, True) if compiled > steps else (steps, False)
    if steps < _FEWEST_STEPS:
        raise ExselError(
            f"--minutes is too short: {len(runs)} runs of {_FEWEST_STEPS} steps, the fewest that show anything, take "
            f"about {math.ceil(needed / 60)} minutes here; give more, or a smaller --model, --batch-size or --seq-len"
        )
    chosen = {**schedule(steps), "tokens": steps * runs[0].tokens_per_step, "compile": is_compiled}
    return [replace(run, **{name: value for name, value in chosen.items() if name not in fixed}) for run in runs]


def chosen_before(folder: Path) -> dict[str, Any] | None:
    """What :func:`fit_minutes` chose for the comparison in a folder; ``None`` if no run of it has begun."""
    path = next(iter(sorted(folder.glob(f"{RUNS}/*/{SETTINGS}"))), None)
    if path is None:
        return None
    content = read_object(path)
    if missing := [name for name in CHOSEN if name not in content]:
        raise ExselError(f"{path} lacks {missing[0]}: it is damaged; use another --out")
    return {name: content[name] for name in CHOSEN}


def _steps(
    runs: Sequence[Settings],
    data: PackedData,
    is_compiled: bool,
    seconds_left: Callable[[], float],
    note: Callable[[str], None],
) -> tuple[int, float]:
    """The steps a run that the time allows after measuring, and the seconds in which the fewest would be done."""
    counts = Counter(run.variant.name for run in runs)
    before = seconds_left()
    step = around = 0.0
    for run in one_a_variant(runs):
        note(f"measuring {_MEASURED_STEPS} {'compiled ' if is_compiled else ''}steps of {run.variant.name} …")
        cost = _measure(replace(run, compile=is_compiled), data)
        evaluations = math.ceil(len(data.validation) / run.micro_batch_size) * cost.step * run.accumulation * _FORWARD
        step += counts[run.variant.name] * cost.step
        around += STEPS * cost.step
        around += counts[run.variant.name] * (cost.around + (run.evaluations - 1) * evaluations)
    measuring = before - seconds_left()
    allowed = math.floor((_SHARE * seconds_left() - around) / step)
    return allowed, measuring + (around + _FEWEST_STEPS * step) / _SHARE


def _measure(settings: Settings, data: PackedData) -> Cost:
    """Train for some steps, as the run will."""
    short = replace(
        settings,
        tokens=_MEASURED_STEPS * settings.tokens_per_step,
        warmup_steps=0,
        evaluations=1,
        save_every=0,
        report_to=(),
    )
    start = time.perf_counter()
    with TemporaryDirectory(prefix="exsel-") as folder:
        try:
            result = train_run(short, data, Path(folder), name="measuring", progress=Progress())
        except Interrupted as stop:
            raise KeyboardInterrupt from stop  # nothing is there to go on with
        seconds = time.perf_counter() - start
    return Cost(step=result["ms_per_step"] / 1e3, around=seconds - result["train_seconds"])
