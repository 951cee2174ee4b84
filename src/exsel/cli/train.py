"""``exsel train``: one run of one variant, of a new model or an existing one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.cli.flags import real, seed
from exsel.cli.training import (
    Source,
    add_training_arguments,
    build_settings,
    check_first,
    mechanism_flags,
    run_session,
    say_what_begins,
)
from exsel.errors import ExselError, require_all
from exsel.variants import BASELINE, VARIANTS, choose_variants

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.progress import Progress
    from exsel.variants import Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    text = (
        "baseline, exclusive, selective, exclusive+selective or constant (one learned number a head, the control of "
        "selective), or a recipe of your own, as FILE.toml:NAME (baseline; with --from what MODEL is)"
    )
    parser.add_argument("--variant", help=text)
    parser.add_argument("--lr", type=real, metavar="X", help="peak learning rate (by model; with --from 1e-4)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights and order (%(default)s)")
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train, print the result."""
    require_all("train")
    begun_with = check_first(arguments)
    variant = _one_variant(arguments, begun_with)
    say_what_begins(arguments, [variant], [arguments.seed])

    from exsel.report import formatting
    from exsel.report.selection import moved_temperatures, selection_notes
    from exsel.training.output_folder import MODEL
    from exsel.training.run import train_run
    from exsel.training.run_model import build_model

    rate = variant.learning_rates[0] if variant.learning_rates else arguments.lr
    settings = build_settings(arguments, begun_with, variant=variant, learning_rate=rate, seed=arguments.seed)
    model: Any = None

    def prepare(data: PackedData) -> None:
        nonlocal model
        if settings.source is not None:
            # Errors of an existing model are found before the output folder is touched.
            model = build_model(settings, data)

    def work(data: PackedData, folder: Path, progress: Progress) -> None:
        result = train_run(
            settings, data, folder, name=variant.name, progress=progress, resume=arguments.resume, model=model
        )
        share = formatting.percent(100 * result["new_parameters"] / (result["parameters"] - result["new_parameters"]))
        trained = f"; {result['trained_parameters']:,} trained" if settings.train == "new" else ""
        results = {"runs": [result]}
        notes = "".join(f"{note}\n" for note in (*moved_temperatures(results), *selection_notes(results)))
        print(
            f"\nvalidation loss {result['loss']:.4f}, {result['bits_per_byte']:.4f} bits per byte\n"
            f"{result['parameters']:,} parameters, {result['new_parameters']:,} of them new ({share}){trained}\n"
            f"{result['ms_per_step']:.1f} ms a step, {formatting.memory(result['peak_memory_bytes'])} at its peak\n"
            f"{notes}model: {folder / MODEL}",
            flush=True,
        )

    return run_session(arguments, [settings], work, prepare=prepare)


def _one_variant(arguments: argparse.Namespace, begun_with: Source | None) -> Variant:
    """The variant of --variant, or what --from is, which keeps its mechanisms; with one learning rate at most."""
    has = BASELINE if begun_with is None else begun_with.variant
    if begun_with is not None and arguments.variant in (None, has):
        for mechanism, present in VARIANTS[has].mechanisms.items():
            if present and getattr(arguments, mechanism):
                raise ExselError(
                    f"--from {begun_with.path} is {has} already and stays as it is: leave out --{mechanism}"
                )
    word: str = arguments.variant or has
    chosen = choose_variants([word], **mechanism_flags(arguments))
    if len(chosen) > 1:
        raise ExselError(f"--variant {word} holds {len(chosen)} recipes: name one, as {word}:{chosen[0].name}")
    if len(chosen[0].learning_rates) > 1:
        raise ExselError(f"--variant {word} has several learning rates, which `exsel compare` tries: leave it one")
    return chosen[0]
