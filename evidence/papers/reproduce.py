"""``python -m evidence reproduce``: the papers' experiments again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.papers.experiments import EXPERIMENTS, Experiment, select
from evidence.papers.outcome import BUDGETS, Budget, ExperimentRecord
from exsel.cli.flags import add_device_argument, listed, seed
from exsel.cli.outputs import check_out, resume_command
from exsel.errors import ExselError, require_all

if TYPE_CHECKING:
    from evidence.papers.running import Reproduction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("names", nargs="?", type=listed(str), metavar="NAME[,NAME…]", help="of --list, or all")
    parser.add_argument("--list", action="store_true", help="say which experiments there are")
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        help="smoke: seconds, to see that it runs; cpu: minutes each; gpu: at most eight minutes each (by device)",
    )
    parser.add_argument(
        "--seeds", type=listed(seed), metavar="N[,N…]", help="0 with smoke, 0 to 4 with cpu, 0,1 with gpu (by budget)"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="text to train on, as in exsel compare (what is on every machine: Python's own source)",
    )
    add_device_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs", "reproduce"),
        metavar="DIR",
        help="where the records, the page and its charts go (%(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="keep what is finished in --out, and go on")
    parser.add_argument("--overwrite", action="store_true", help="replace what exsel wrote into --out")


def run(arguments: argparse.Namespace) -> int:
    """List, or check, run one after the other, and write the page; 1 where an experiment could not be run."""
    if arguments.list:
        _list()
        return 0
    require_all("train")
    experiments = select([name for name in arguments.names or [] if name])
    reproduction = _reproduction(arguments)

    from evidence.papers import running
    from exsel.cli.display import warn
    from exsel.files import locked

    if check_out(arguments, running.is_reproduction, "`python -m evidence reproduce`"):
        running.check_settings(reproduction)
    if reproduction.budget == "gpu" and reproduction.device == "cpu":
        warn("--budget gpu on the CPU takes hours: --budget cpu is meant for it")
    reproduction.folder.mkdir(parents=True, exist_ok=True)
    with locked(reproduction.folder):
        running.open_folder(reproduction, overwrite=arguments.overwrite)
        return _run_all(experiments, reproduction, arguments.given)


def _run_all(experiments: Sequence[Experiment], reproduction: Reproduction, given: Sequence[str]) -> int:
    from evidence.papers import running
    from evidence.papers.results_page import write_page
    from exsel.cli.display import make_progress, warn

    failed = []
    for number, experiment in enumerate(experiments, start=1):
        print(
            f"[{number} of {len(experiments)}] {experiment.name}: {experiment.title} ({experiment.source})", flush=True
        )
        finished = running.record_path(reproduction, experiment)
        try:
            if finished.exists():
                print("finished before")
                record = ExperimentRecord.read(finished)
            else:
                with closing(make_progress()) as progress:
                    record = running.reproduce(experiment, reproduction, progress)
            _show(record)
        except running.Stopped as stop:
            print(f"\nstopped in {experiment.name}; go on with:\n  {resume_command(given)}", flush=True)
            return 128 + stop.signal
        except (ExselError, ImportError) as error:
            warn(f"{experiment.name} could not be run: {error}")
            failed.append(experiment.name)
        print()
    print(f"page: {write_page(reproduction.folder, running.records(reproduction), png=True)}", flush=True)
    if failed:
        warn(f"{len(failed)} of {len(experiments)} could not be run: {', '.join(failed)}")
    return 1 if failed else 0


def _list() -> None:
    rows = [(experiment.name, experiment.source, experiment.title) for experiment in EXPERIMENTS]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, source, title in [("Name", "Source", "Experiment"), *rows]:
        print(f"{name:{widths[0]}}  {source:{widths[1]}}  {title}")


def _reproduction(arguments: argparse.Namespace) -> Reproduction:
    """What the flags say.

    Raises:
        ExselError: an absent device, data that is not there, or seeds that are none.
    """
    from evidence.papers.running import SEEDS, Reproduction
    from evidence.papers.variant_runs import identify_text
    from exsel.machine import resolve_device

    if arguments.device == "mps":
        raise ExselError("--device mps: choose auto, cpu or cuda")
    device = resolve_device(arguments.device)
    if device == "mps":  # which auto found
        device = "cpu"
    budget: Budget = arguments.budget or ("gpu" if device == "cuda" else "cpu")
    seeds = SEEDS[budget] if arguments.seeds is None else tuple(arguments.seeds)
    if len(set(seeds)) < len(seeds):
        raise ExselError(f"--seeds must be different numbers, got {', '.join(map(str, seeds))}")
    return Reproduction(
        budget=budget,
        device=device,
        seeds=seeds,
        data=tuple(arguments.data),
        text=identify_text(arguments.data, budget),
        folder=arguments.out,
    )


def _show(record: ExperimentRecord) -> None:
    from evidence.papers.results_page import HEADINGS, finding_rows, verdict_in_words
    from exsel.cli.display import print_table
    from exsel.report.formatting import duration

    if record.outcome.findings:
        print_table(finding_rows(record.outcome), HEADINGS)
    print(f"{verdict_in_words(record)}. {record.outcome.conclusion}")
    print(f"({duration(record.seconds)}, {record.budget} budget)", flush=True)
