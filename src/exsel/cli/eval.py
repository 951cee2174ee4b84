"""``exsel eval``: how well a model predicts text."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from exsel.cli.arguments import add_data_arguments, add_device_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, or one that holds a saved model")
    add_data_arguments(parser)
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens a sequence (the model's context)")
    parser.add_argument("--pack", choices=["concat", "isolate"], default="concat", help="as in training (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences at a time (%(default)s)")
    parser.add_argument("--max-blocks", type=int, metavar="N", help="at most so many sequences, evenly spread (all)")
    add_device_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")


def run(arguments: argparse.Namespace) -> int:
    """Load, evaluate, print."""
    from dataclasses import asdict

    from exsel.errors import UserError, require_all

    require_all("train")
    for name in ("seq_len", "batch_size", "max_blocks"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.json is not None and (
        arguments.json.is_dir() or not os.access(arguments.json.absolute().parent, os.W_OK)
    ):
        raise UserError(f"--json {arguments.json} cannot be written: name a file in a folder that exists")

    import torch

    from exsel.cli.checkpoint import check_length, load_checkpoint
    from exsel.cli.display import evaluation_progress, print_table
    from exsel.data import load_evaluation_data
    from exsel.evaluation import evaluate_loss
    from exsel.files import write_json
    from exsel.training.environment import describe_machine, resolve_device

    device = resolve_device(arguments.device)
    model, tokenizer = load_checkpoint(arguments.checkpoint, device)
    seq_len = arguments.seq_len or getattr(model.config, "max_position_embeddings", 1024)
    check_length(model, seq_len)
    blocks, description = load_evaluation_data(
        arguments.data,
        tokenizer=tokenizer,
        seq_len=seq_len,
        pack=arguments.pack,
        text_field=arguments.text_field,
        max_blocks=arguments.max_blocks,
    )
    with evaluation_progress() as on_batch:
        evaluation = evaluate_loss(
            model, blocks, batch_size=arguments.batch_size, device=torch.device(device), on_batch=on_batch
        )
    if not math.isfinite(evaluation.loss):
        raise UserError(f"the loss of {arguments.checkpoint} is {evaluation.loss}: its weights are of no use")
    numbers = {
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte(description.bytes_per_token),
        "tokens": int(evaluation.count.sum()),
    }
    print(f"data: {description.name}\n")
    rows = [{"name": name.replace("_", " "), "value": f"{value:,.4f}"} for name, value in numbers.items()]
    rows[-1]["value"] = f"{numbers['tokens']:,}"
    print_table(rows, {"name": "Measure", "value": "Value"})
    print()
    buckets = [
        {"positions": f"{first} to {end - 1}", "loss": f"{loss:.4f}"} for first, end, loss in evaluation.by_position()
    ]
    print_table(buckets, {"positions": "Position in the sequence", "loss": "Loss"})
    if arguments.json is not None:
        write_json(
            arguments.json,
            {
                **numbers,
                "by_position": [
                    {"first": first, "last": end - 1, "loss": loss} for first, end, loss in evaluation.by_position()
                ],
                "checkpoint": arguments.checkpoint,
                "data": asdict(description),
                "machine": describe_machine(device),
            },
        )
    return 0
