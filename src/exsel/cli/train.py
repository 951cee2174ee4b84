"""``exsel train``: one run of one variant, of a new model or of one that exists."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.cli.flags import MODEL, number, seed
from exsel.cli.training import add_training_arguments
from exsel.errors import ExselError, require_all

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.monitor import Progress
    from exsel.training.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--variant",
        help="baseline, exclusive, selective or exclusive+selective (baseline; with --from what MODEL is)",
    )
    parser.add_argument("--lr", type=number, metavar="X", help="peak learning rate (by model; with --from 1e-4)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights and order (%(default)s)")
    fine_tuning = parser.add_argument_group("fine-tuning")
    fine_tuning.add_argument(
        "--from",
        dest="source",
        metavar="MODEL",
        help=f"begin with a causal language model that exists, and put into it what --variant says: {MODEL}; its "
        "tokenizer is used",
    )
    fine_tuning.add_argument(
        "--train",
        choices=["all", "new"],
        default="all",
        help="with --from: train all parameters, or only the new ones of the mechanisms (%(default)s)",
    )
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train, print the result."""
    require_all("train")
    from exsel.cli.training import build_settings, run_session
    from exsel.report import formatting
    from exsel.training.output_folder import MODEL
    from exsel.training.run import train_run
    from exsel.training.run_model import build_model

    if arguments.source is not None:
        settings = _fine_tuning_settings(arguments)
    else:
        settings = build_settings(
            arguments,
            variant=arguments.variant or "baseline",
            learning_rate=arguments.lr,
            seed=arguments.seed,
            train=arguments.train,
        )
    model: Any = None

    def prepare(data: PackedData) -> None:
        nonlocal model
        if settings.source is not None:
            # Whatever is wrong with a model that exists is found before the output folder is touched.
            model = build_model(settings, data)

    def work(data: PackedData, folder: Path, progress: Progress) -> None:
        result = train_run(
            settings, data, folder, name=settings.variant, progress=progress, resume=arguments.resume, model=model
        )
        share = formatting.percent(100 * result["new_parameters"] / (result["parameters"] - result["new_parameters"]))
        trained = f"; {result['trained_parameters']:,} trained" if settings.train == "new" else ""
        print(
            f"\nvalidation loss {result['loss']:.4f}, {result['bits_per_byte']:.4f} bits per byte\n"
            f"{result['parameters']:,} parameters, {result['new_parameters']:,} of them new ({share}){trained}\n"
            f"{result['ms_per_step']:.1f} ms a step, {formatting.memory(result['peak_memory_bytes'])} at its peak\n"
            f"model: {folder / MODEL}",
            flush=True,
        )

    return run_session(arguments, [settings], work, prepare=prepare)


def _fine_tuning_settings(arguments: argparse.Namespace) -> Settings:
    """What the flags and the model to begin with say.

    Raises:
        ExselError: flags that contradict each other or the model, or no such model.
    """
    from exsel.cli.training import build_settings
    from exsel.lengths import context_of
    from exsel.training.finetuning import read_source, source_variant
    from exsel.training.settings import FINE_TUNING
    from exsel.variants import VARIANTS

    for flag, value in (("model", arguments.model), ("tokenizer", arguments.tokenizer)):
        if value is not None:
            raise ExselError(f"--{flag} is of a new model, and --from begins with one that has its own: leave one out")
    source = _find_source(arguments)
    config = read_source(source)
    has = source_variant(config)
    variant = arguments.variant or has
    if variant == has:
        for mechanism in VARIANTS[has]:
            if getattr(arguments, mechanism):
                raise ExselError(f"--from {source} is {has} already and stays as it is: leave out --{mechanism}")
    context = context_of(config)
    defaults = replace(FINE_TUNING, seq_len=min(FINE_TUNING.seq_len, context or FINE_TUNING.seq_len))
    return build_settings(
        arguments,
        variant=variant,
        learning_rate=arguments.lr,
        seed=arguments.seed,
        source=source,
        train=arguments.train,
        defaults=defaults,
    )


def _find_source(arguments: argparse.Namespace) -> str:
    """The folder of the model to begin with; what is no path is a name on the hub."""
    from exsel.cli.checkpoint import find_model

    text: str = arguments.source
    source = find_model(text, "--from")
    if Path(text).exists() and Path(source).resolve().is_relative_to(arguments.out.resolve()):
        raise ExselError(f"--from {text} lies in --out {arguments.out}, which this run writes: choose another --out")
    return source
