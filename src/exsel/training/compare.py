"""Several runs side by side: the same data, the same weights where shapes agree, the same batches in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.files import locked, write_json
from exsel.machine import describe_machine, git_revision
from exsel.report import write_report
from exsel.training.new_models import model_facts
from exsel.training.output_folder import REPORT, RESULTS, RUNS
from exsel.training.processes import joined
from exsel.training.progress import PlannedRun, Progress
from exsel.training.run import check_begun, train_run
from exsel.training.settings import Settings
from exsel.training.step_cost import step_costs
from exsel.training.summary import StepCost, summarise
from exsel.variants import BASELINE, VARIANTS, Variant
from exsel.version import __version__

_SCHEMA = 2
# Settings that differ between runs. Each run records them, not the comparison.
_PER_RUN = ("variant", "exclusive", "selective", "seed", "learning_rate", "selective_learning_rate")


def plan_runs(
    settings: Settings, *, variants: Sequence[Variant], learning_rates: Sequence[float], seeds: Sequence[int]
) -> dict[str, Settings]:
    """The runs of a comparison by name, in order: those of a seed together, the baseline first.

    Args:
        settings: of all runs; each run has its own variant, learning rates and seed.
        variants: one or more; recipes come after the variants that have a name in :data:`exsel.variants.VARIANTS`.
        learning_rates: the peak learning rates of each variant that has none of its own.
        seeds: of the runs of each variant and learning rate.

    Raises:
        ExselError: nothing to run, or something named twice.
    """
    own = {variant.name: variant.learning_rates or tuple(learning_rates) for variant in variants}
    for what, values in (
        ("variants", [variant.name for variant in variants]),
        ("lr", learning_rates),
        ("seeds", seeds),
        *((f"lr of {name}", rates) for name, rates in own.items()),
    ):
        if not values:
            raise ExselError(f"--{what} names nothing to run")
        if len(set(values)) < len(values):
            raise ExselError(f"--{what} names the same one twice: {', '.join(map(str, values))}")
    order = {name: place for place, name in enumerate(VARIANTS)}
    return {
        f"{variant.name}-lr{learning_rate}-seed{seed}": replace(
            settings,
            variant=variant,
            learning_rate=learning_rate,
            selective_learning_rate=variant.selective_learning_rate or settings.selective_learning_rate,
            seed=seed,
        )
        for learning_rate in dict.fromkeys(rate for rates in (learning_rates, *own.values()) for rate in rates)
        for seed in seeds
        for variant in sorted(variants, key=lambda variant: order.get(variant.name, len(order)))
        if learning_rate in own[variant.name]
    }


def compare_runs(
    runs: dict[str, Settings],
    data: PackedData,
    folder: Path,
    *,
    command: str,
    progress: Progress,
    resume: bool = False,
) -> dict[str, Any]:
    """Train all runs and write ``results.json`` and ``report.html``.

    Several processes work as in :func:`exsel.training.run.train_run`.

    Args:
        runs: from :func:`plan_runs`.
        data: loaded as the settings of the runs say.
        folder: the output folder; each run has a folder below ``runs`` in it.
        command: the command line, for the record.
        progress: the display of the runs.
        resume: keep the runs that are finished and go on with the one that is not.

    Returns:
        The content of ``results.json``.

    Raises:
        As :func:`exsel.training.run.train_run`.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with joined(next(iter(runs.values())).device) as processes, ExitStack() as held:

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            for name, settings in runs.items():
                check_begun(folder / RUNS / name, settings, data, resume=resume)

        processes.first(begin)
        planned = _planned(list(runs.values()))
        progress.plan(planned)
        entries = []
        for shown, (name, settings) in zip(planned, runs.items(), strict=True):
            own = folder / RUNS / name
            entry = train_run(settings, data, own, name=shown.name, progress=progress, resume=resume)
            entries.append({**entry, "directory": str(own.relative_to(folder))})
        costs = {}
        if processes.count == 1:  # several would be measured with their waiting for each other
            progress.note("timing a step of each variant in turn …")
            costs = step_costs(list(runs.values()), data)
        results = _results(list(runs.values()), entries, data, costs, command=command, started=started)
        if processes.is_first:
            write_json(folder / RESULTS, results)
            write_report(results, folder / REPORT)
    return results


def _planned(runs: Sequence[Settings]) -> list[PlannedRun]:
    """The runs as they are shown: by what tells them apart, each beside the baseline of its seed and learning rate."""
    seeds, rates = ({getattr(run, name) for run in runs} for name in ("seed", "learning_rate"))
    names = {}
    for index, run in enumerate(runs, start=1):
        rate = f", lr {run.learning_rate:g}" if len(rates) > 1 else ""
        seed = f", seed {run.seed}" if len(seeds) > 1 else ""
        key = run.variant.name, run.learning_rate, run.seed
        names[key] = f"{run.variant.name}{rate}{seed} ({index} of {len(runs)})"
    return [
        PlannedRun(
            name=name,
            steps=run.steps,
            baseline=None if run.variant.name == BASELINE else names.get((BASELINE, run.learning_rate, run.seed)),
        )
        for name, run in zip(names.values(), runs, strict=True)
    ]


def _results(
    runs: list[Settings],
    entries: list[dict[str, Any]],
    data: PackedData,
    costs: dict[str, StepCost],
    *,
    command: str,
    started: str,
) -> dict[str, Any]:
    first = runs[0]
    return {
        "schema": _SCHEMA,
        "exsel_version": __version__,
        "command": command,
        "started": started,
        "git_revision": git_revision(),
        "config": {
            **{name: value for name, value in first.to_dict().items() if name not in _PER_RUN},
            "variants": list(dict.fromkeys(run.variant.name for run in runs)),
            "lr": list(dict.fromkeys(run.learning_rate for run in runs)),
            "seeds": list(dict.fromkeys(run.seed for run in runs)),
            "steps": first.steps,
        },
        "recipes": {
            run.variant.name: {**run.variant.to_dict(), "selective_lr": run.selective_learning_rate} for run in runs
        },
        "data": asdict(data.description),
        "machine": describe_machine(first.device),
        "model": {
            "name": first.model_name,
            "parameters": min(entry["parameters"] - entry["new_parameters"] for entry in entries),
            **model_facts(first, data.description.vocab_size),
        },
        "variants": summarise(entries, first.tokens_per_step, costs),
        "runs": entries,
    }
