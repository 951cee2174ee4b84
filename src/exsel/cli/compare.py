"""``exsel compare``: train variants side by side, and report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from exsel.cli.flags import listed, real, seed
from exsel.cli.outputs import command_line
from exsel.cli.training import add_training_arguments, build_settings, mechanism_flags, run_session
from exsel.errors import require_all
from exsel.variants import BASELINE, VARIANTS, choose_variants

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--variants",
        type=listed(str),
        default=",".join(VARIANTS),
        metavar="NAME[,NAME…]",
        help="any of %(default)s, and .toml files of recipes of your own (FILE.toml, or one of it: FILE.toml:NAME)",
    )
    parser.add_argument(
        "--lr", type=listed(real), metavar="X[,X…]", help="peak learning rate; several: a sweep (by model)"
    )
    parser.add_argument(
        "--seeds", type=listed(seed), default=[0], metavar="N[,N…]", help="one run of each variant a seed (0)"
    )
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train all, print the table."""
    require_all("train")
    from exsel.cli.display import print_table
    from exsel.report import HEADINGS, headline, headline_note, spread_sentence, summary_rows
    from exsel.training.compare import compare, plan_runs
    from exsel.training.output_folder import REPORT, RESULTS

    variants = choose_variants([word for word in arguments.variants if word], **mechanism_flags(arguments))
    rates = arguments.lr or []
    settings = build_settings(
        arguments, variant=VARIANTS[BASELINE], learning_rate=rates[0] if rates else None, seed=arguments.seeds[0]
    )
    rates = rates or [settings.learning_rate]
    runs = plan_runs(settings, variants=variants, learning_rates=rates, seeds=arguments.seeds)
    command = command_line(arguments.given)

    def work(data: PackedData, folder: Path, progress: Progress) -> None:
        results = compare(runs, data, folder, command=command, progress=progress, resume=arguments.resume)
        print()
        print_table(summary_rows(results), HEADINGS)
        print(f"\n{spread_sentence(results)}\n{headline(results)}\n{headline_note(results)}".rstrip())
        print(f"\nreport: {folder / REPORT}\nnumbers: {folder / RESULTS}", flush=True)

    return run_session(arguments, list(runs.values()), work)
