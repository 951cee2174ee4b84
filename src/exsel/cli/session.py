"""What ``compare`` and ``train`` share: load, open the output folder, train, and stop well when asked to."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from exsel.cli.arguments import check_output, open_output, resume_command
from exsel.cli.display import make_progress, warn
from exsel.data import PackedData, load_data
from exsel.training.disk import check_disk
from exsel.training.models import sketch_model
from exsel.training.monitor import Progress
from exsel.training.run import Interrupted
from exsel.training.settings import Settings


def run_session(
    arguments: argparse.Namespace,
    runs: Sequence[Settings],
    work: Callable[[PackedData, Path, Progress], None],
    *,
    prepare: Callable[[PackedData], None] | None = None,
) -> int:
    """Check everything, load the data, prepare, and only then touch the output folder and work.

    Returns:
        The exit code.
    """
    check_output(arguments)
    settings = runs[0]
    for run in runs:
        sketch_model(run, vocab_size=1)  # heads, layers and strengths fit together
    if arguments.compile is None and not settings.compile:
        warn("no C++ compiler (g++ or clang++) found: training runs eager, without torch.compile")
    data = load_data(
        settings.data,
        tokenizer=settings.tokenizer,
        seq_len=settings.seq_len,
        pack=settings.pack,
        text_field=settings.text_field,
        validation_blocks=settings.evaluation_blocks,
    )
    described = data.description
    check_disk(runs, described.vocab_size, arguments.out)
    size = "streamed" if described.train_tokens is None else f"{described.train_tokens:,} tokens"
    print(f"data: {described.name}, {size}, to train on", flush=True)
    print(
        f"model: {settings.model}, {settings.steps:,} steps of {settings.batch_size} × {settings.seq_len} tokens on "
        f"{settings.device}, {settings.dtype}, {'compiled' if settings.compile else 'eager'}",
        flush=True,
    )
    if prepare is not None:
        prepare(data)
    folder = open_output(arguments)
    try:
        work(data, folder, make_progress())
    except Interrupted as stop:
        print(f"\n{stop}; go on with:\n  {resume_command(arguments.given)}", flush=True)
        return 128 + stop.signal
    return 0
