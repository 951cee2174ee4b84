"""``exsel train``: one run of one variant, of a new model or an existing one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.cli.flags import MODEL, real, seed
from exsel.cli.training import add_training_arguments, build_settings, mechanism_flags, run_session
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
    fine_tuning = parser.add_argument_group("fine-tuning")
    fine_tuning.add_argument(
        "--from",
        dest="source",
        metavar="MODEL",
        help=f"begin with a causal language model that exists, and put into it what --variant says: {MODEL}; its "
        "tokenizer is used",
    )
    text = "with --from: train all parameters, or only the new ones of the mechanisms (%(default)s)"
    fine_tuning.add_argument("--train", choices=["all", "new"], default="all", help=text)
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train, print the result."""
    require_all("train")
    from exsel.report import formatting
    from exsel.report.selection import moved_temperatures, selection_notes
    from exsel.training.output_folder import MODEL
    from exsel.training.run import train_run
    from exsel.training.run_model import build_model

    said = {} if arguments.source is None else _fine_tuning(arguments)
    variant = _one_variant(arguments, said.pop("has", BASELINE))
    rate = variant.learning_rates[0] if variant.learning_rates else arguments.lr
    settings = build_settings(
        arguments, variant=variant, learning_rate=rate, seed=arguments.seed, train=arguments.train, **said
    )
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


def _one_variant(arguments: argparse.Namespace, default: str) -> Variant:
    """The variant of --variant, with one learning rate at most."""
    word: str = arguments.variant or default
    chosen = choose_variants([word], **mechanism_flags(arguments))
    if len(chosen) > 1:
        raise ExselError(f"--variant {word} holds {len(chosen)} recipes: name one, as {word}:{chosen[0].name}")
    if len(chosen[0].learning_rates) > 1:
        raise ExselError(f"--variant {word} has several learning rates, which `exsel compare` tries: leave it one")
    return chosen[0]


def _fine_tuning(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`exsel.cli.training.build_settings` that depend on the model to fine-tune.

    Raises:
        ExselError: flags that contradict each other or the model, or no such model.
    """
    from dataclasses import replace

    from exsel.cli.checkpoint import find_model
    from exsel.lengths import context_of
    from exsel.training.finetuning import read_source, source_variant
    from exsel.training.settings import FINE_TUNING

    for flag, value in (("model", arguments.model), ("tokenizer", arguments.tokenizer)):
        if value is not None:
            raise ExselError(f"--{flag} is of a new model, and --from begins with one that has its own: leave one out")
    text: str = arguments.source
    source = find_model(text, "--from")
    if Path(text).exists() and Path(source).resolve().is_relative_to(arguments.out.resolve()):
        raise ExselError(f"--from {text} lies in --out {arguments.out}, which this run writes: choose another --out")
    config = read_source(source)
    has = source_variant(config)
    variant = arguments.variant or has
    for mechanism, present in VARIANTS[has].mechanisms.items() if variant == has else ():
        if present and getattr(arguments, mechanism):
            raise ExselError(f"--from {source} is {has} already and stays as it is: leave out --{mechanism}")
    seq_len = min(FINE_TUNING.seq_len, context_of(config) or FINE_TUNING.seq_len)
    return {"has": has, "source": source, "defaults": replace(FINE_TUNING, seq_len=seq_len)}
