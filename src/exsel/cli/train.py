"""``exsel train``: one run of one variant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from exsel.cli.arguments import add_training_arguments
from exsel.errors import require_all

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.monitor import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--variant", default="baseline", help="baseline, exclusive, selective or exclusive+selective")
    parser.add_argument("--lr", type=float, metavar="X", help="peak learning rate (by model)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and order (%(default)s)")
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, load, train, print the result."""
    require_all("train")
    from exsel.cli.arguments import build_settings
    from exsel.cli.session import run_session
    from exsel.report import formatting
    from exsel.training.layout import MODEL
    from exsel.training.run import train_run

    settings = build_settings(arguments, variant=arguments.variant, learning_rate=arguments.lr, seed=arguments.seed)

    def work(data: PackedData, folder: Path, progress: Progress) -> None:
        result = train_run(settings, data, folder, name=settings.variant, progress=progress, resume=arguments.resume)
        share = formatting.percent(100 * result["new_parameters"] / (result["parameters"] - result["new_parameters"]))
        print(
            f"\nvalidation loss {result['loss']:.4f}, {result['bits_per_byte']:.4f} bits per byte\n"
            f"{result['parameters']:,} parameters, {result['new_parameters']:,} of them new ({share})\n"
            f"{result['ms_per_step']:.1f} ms a step, {formatting.memory(result['peak_memory_bytes'])} at its peak\n"
            f"model: {folder / MODEL}",
            flush=True,
        )

    return run_session(arguments, [settings], work)
