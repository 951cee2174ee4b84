"""``exsel compare``: train variants side by side, and report."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exsel.cli.flags import listed, real, seed
from exsel.cli.outputs import command_line
from exsel.cli.training import (
    add_training_arguments,
    build_settings,
    check_first,
    mechanism_flags,
    run_session,
    say_what_begins,
)
from exsel.errors import ExselError, require_all
from exsel.variants import BASELINE, CHOOSING_SEED, VARIANTS, choose_variants

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.progress import Progress
    from exsel.training.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--variants",
        type=listed(str),
        default=",".join(VARIANTS),
        metavar="NAME[,NAME…]",
        help="any of %(default)s; constant, the control of selective: one learned number a head; and .toml files of "
        "recipes of your own (FILE.toml, or one of it: FILE.toml:NAME)",
    )
    parser.add_argument(
        "--lr",
        type=listed(real),
        metavar="X[,X…]",
        help="peak learning rate; several: a sweep (by model; with --from 1e-4)",
    )
    parser.add_argument(
        "--seeds", type=listed(seed), default=[0], metavar="N[,N…]", help="one run of each variant a seed (0)"
    )
    text = f"of a sweep: the seeds whose runs choose each variant's rate, none of them in --seeds ({CHOOSING_SEED})"
    parser.add_argument("--choosing-seeds", type=listed(seed), default=[CHOOSING_SEED], metavar="N[,N…]", help=text)
    text = "size the runs by time instead of --tokens: all ends in about N minutes, on equal tokens for every variant"
    parser.add_argument("--minutes", type=real, metavar="N", help=text)
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train all, print the table."""
    started = time.monotonic()
    require_all("train")
    minutes: float | None = arguments.minutes
    if minutes is not None and not 0 < minutes < math.inf:
        raise ExselError(f"--minutes must be a positive number, got {minutes}")
    if minutes is not None and arguments.tokens is not None:
        raise ExselError("--minutes chooses the tokens, and --tokens says them: give one of the two")
    variants = choose_variants([word for word in arguments.variants if word], **mechanism_flags(arguments))
    begun_with = check_first(arguments)
    say_what_begins(arguments, variants, arguments.seeds)

    from exsel.cli.display import print_table
    from exsel.report import headline, headline_note, interval_sentence, summary_rows, sweep_ends, table_headings
    from exsel.report.comparison import answer_rows
    from exsel.report.selection import selection_notes
    from exsel.training.compare import compare_runs
    from exsel.training.comparison_plan import plan_runs
    from exsel.training.output_folder import REPORT, RESULTS
    from exsel.training.processes import current
    from exsel.training.sizing import CHOSEN, chosen_before, fit_minutes

    rates = arguments.lr or []
    settings = build_settings(
        arguments,
        begun_with,
        variant=VARIANTS[BASELINE],
        learning_rate=rates[0] if rates else None,
        seed=arguments.seeds[0],
    )
    rates = rates or [settings.learning_rate]
    plan = plan_runs(
        settings,
        variants=variants,
        learning_rates=rates,
        seeds=arguments.seeds,
        choosing_seeds=arguments.choosing_seeds,
    )
    command = command_line(arguments.given)

    def prepare(data: PackedData) -> Sequence[Settings] | None:
        nonlocal plan
        if minutes is None:
            return None
        if current().count > 1:
            raise ExselError("--minutes measures one process, and the launcher started several: give --tokens")
        # A comparison that goes on keeps the tokens that were chosen when it began.
        chosen = chosen_before(arguments.out) if arguments.resume else None
        if chosen is not None:
            sized = [replace(run, **chosen) for run in plan.runs]
        else:
            end = started + 60 * minutes
            given = [name for name in CHOSEN if getattr(arguments, name) is not None]
            sized = fit_minutes(plan.runs, data, seconds_left=lambda: end - time.monotonic(), fixed=given, note=note)
        plan = plan.with_runs(sized)
        return sized

    def note(text: str) -> None:
        print(text, flush=True)

    def work(data: PackedData, folder: Path, progress: Progress) -> None:
        results = compare_runs(plan, data, folder, command=command, progress=progress, resume=arguments.resume)
        print()
        print_table(summary_rows(results), table_headings(results))
        said = (interval_sentence(results), sweep_ends(results), headline(results), headline_note(results))
        notes = (note for note in selection_notes(results) if note not in said[-1])
        print("", *filter(None, said), *notes, sep="\n")
        if rows := answer_rows(results):
            print()
            print_table([{key: str(cell) for key, cell in row.items()} for row in rows], {key: key for key in rows[0]})
        print(f"\nreport: {folder / REPORT}\nnumbers: {folder / RESULTS}", flush=True)

    return run_session(arguments, plan.runs, work, prepare=prepare)
