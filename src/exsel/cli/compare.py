"""``exsel compare``: the main job."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from exsel.cli.arguments import add_training_arguments

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.monitor import Progress

_ALL = "baseline,exclusive,selective,exclusive+selective"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--variants", default=_ALL, help="any of %(default)s")
    parser.add_argument("--lr", type=_numbers, metavar="X[,X…]", help="peak learning rate; several: a sweep (by model)")
    parser.add_argument(
        "--seeds", type=_seeds, default=[0], metavar="N[,N…]", help="one run of each variant a seed (0)"
    )
    add_training_arguments(parser)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train all, print the table."""
    from exsel.cli.arguments import build_settings, default_learning_rate
    from exsel.cli.display import print_table
    from exsel.cli.session import run_session
    from exsel.report import HEADINGS, headline, spread_sentence, summary_rows
    from exsel.training.compare import REPORT, RESULTS, compare, plan

    variants = [name.strip() for name in arguments.variants.split(",") if name.strip()]
    learning_rates = arguments.lr or [default_learning_rate(arguments.model)]
    settings = build_settings(arguments, variant="baseline", learning_rate=learning_rates[0], seed=arguments.seeds[0])
    runs = plan(settings, variants=variants, learning_rates=learning_rates, seeds=arguments.seeds)
    command = shlex.join(["exsel", *sys.argv[1:]])

    def work(data: PackedData, folder: Path, progress: Progress) -> None:
        results = compare(runs, data, folder, command=command, progress=progress, resume=arguments.resume)
        print()
        print_table(summary_rows(results), HEADINGS)
        print(f"\n{spread_sentence(results)}\n{headline(results)}")
        print(f"\nreport: {folder / REPORT}\nnumbers: {folder / RESULTS}", flush=True)

    return run_session(arguments, next(iter(runs.values())), work)
