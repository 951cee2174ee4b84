"""Several runs side by side: the same data, the same weights where shapes agree, the same batches in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exsel.data import PackedData
from exsel.files import locked, write_json
from exsel.machine import describe_machine, git_revision
from exsel.report import write_report
from exsel.report.results_file import SCHEMA
from exsel.training.comparison_plan import ComparisonPlan, run_name
from exsel.training.new_models import model_facts
from exsel.training.output_folder import REPORT, RESULTS, RUNS
from exsel.training.processes import joined
from exsel.training.progress import Progress
from exsel.training.run import check_begun, train_run
from exsel.training.settings import Settings, one_a_variant
from exsel.training.step_cost import STEPS, step_costs
from exsel.training.summary import summarise, summarise_sweep
from exsel.variants import OWN_RATES
from exsel.version import __version__

# Settings that differ between runs. Each run records them, not the comparison.
_PER_RUN = ("variant", "exclusive", "selective", "seed", "learning_rate", *OWN_RATES)


def compare_runs(
    plan: ComparisonPlan,
    data: PackedData,
    folder: Path,
    *,
    command: str,
    progress: Progress,
    resume: bool = False,
) -> dict[str, Any]:
    """Train all runs and write ``results.json``, whose content it returns, and ``report.html``.

    Several processes work as in :func:`exsel.training.run.train_run`, which also says what is raised.

    Args:
        plan: from :func:`exsel.training.comparison_plan.plan_runs`.
        data: loaded as the settings of the runs say.
        folder: the output folder; each run has a folder below ``runs`` in it.
        command: the command line, for the record.
        progress: the display of the runs.
        resume: keep the runs that are finished and go on with the one that is not.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with joined(plan.results[0].device) as processes, ExitStack() as held:

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            for settings in plan.runs:
                check_begun(folder / RUNS / run_name(settings), settings, data, resume=resume)

        processes.first(begin)
        shown = plan.shown()
        names = iter(shown)
        # Several processes would be timed with their waiting for each other.
        is_timed = processes.count == 1
        progress.plan(shown, STEPS * len(one_a_variant(plan.results)) if is_timed else 0)

        def train(settings: Settings) -> dict[str, Any]:
            own = folder / RUNS / run_name(settings)
            entry = train_run(settings, data, own, name=next(names).name, progress=progress, resume=resume)
            return {**entry, "directory": str(own.relative_to(folder))}

        choosing = [train(settings) for settings in plan.choosing]
        sweep = summarise_sweep(choosing)
        runs = plan.at({row["variant"]: row["learning_rate"] for row in sweep if row["chosen"]})
        entries = [train(settings) for settings in runs]
        costs = {}
        if is_timed:
            progress.note("timing a step of each variant in turn …")
            costs = step_costs(runs, data)
        results = {
            **_set_up(plan, entries, data, command=command, started=started),
            "variants": summarise(entries, runs[0].tokens_per_step, costs),
            "sweep": sweep,
            "runs": entries,
            "choosing_runs": choosing,
        }
        if processes.is_first:
            write_json(folder / RESULTS, results)
            write_report(results, folder / REPORT)
    return results


def _set_up(
    plan: ComparisonPlan, entries: Sequence[Mapping[str, Any]], data: PackedData, *, command: str, started: str
) -> dict[str, Any]:
    """What was compared, and where."""
    runs, first = plan.runs, plan.results[0]
    return {
        "schema": SCHEMA,
        "exsel_version": __version__,
        "command": command,
        "started": started,
        "git_revision": git_revision(),
        "config": {
            **{name: value for name, value in first.to_dict().items() if name not in _PER_RUN},
            "variants": list(dict.fromkeys(run.variant.name for run in runs)),
            "lr": list(dict.fromkeys(run.learning_rate for run in runs)),
            "seeds": list(dict.fromkeys(run.seed for run in plan.results)),
            "choosing_seeds": list(dict.fromkeys(run.seed for run in plan.choosing)),
            "steps": first.steps,
        },
        "recipes": {
            run.variant.name: {
                **run.variant.to_dict(),
                **{name.replace("learning_rate", "lr"): getattr(run, name) for name in OWN_RATES},
            }
            for run in runs
        },
        "data": asdict(data.description),
        "machine": describe_machine(first.device),
        "model": {
            "name": first.model_name,
            "parameters": min(entry["parameters"] - entry["new_parameters"] for entry in entries),
            **model_facts(first, data.description.vocab_size),
        },
    }
