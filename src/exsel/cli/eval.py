"""``exsel eval``: how well a model predicts text, finds a key in it, and answers the questions of known tasks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from exsel.cli.checkpoint import check_ids, load_checkpoint
from exsel.cli.flags import (
    MODEL,
    add_data_arguments,
    add_device_argument,
    add_json_argument,
    add_past_context_argument,
    listed,
    real,
    seed,
    whole,
)
from exsel.cli.model_line import say_model
from exsel.cli.outputs import check_file, json_output
from exsel.errors import ExselError, explained, require, require_all
from exsel.lengths import check_length, context_of
from exsel.report.formatting import count

_PICTURES = (".svg", ".png")
# A key has five digits, and the first is not 0.
_MOST_KEYS = 90_000
# The sequence length if neither the flags nor the model give one.
_SEQ_LEN = 1024
# Flags that have an effect only together with another flag.
_BELONGING = {"passkey": ("depths", "samples", "seed", "picture"), "tasks": ("task_path", "num_fewshot", "limit")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    loss = parser.add_argument_group("loss", "evaluated if --data or neither --passkey nor --tasks is given")
    add_data_arguments(loss)
    loss.add_argument("--seq-len", type=whole(1), metavar="N", help="tokens a sequence (the model's context)")
    loss.add_argument("--pack", choices=["concat", "isolate"], default="concat", help="as in training (%(default)s)")
    loss.add_argument("--max-sequences", type=whole(1), metavar="N", help="at most N sequences, evenly spread (all)")
    keys = parser.add_argument_group("passkey", "find a five-digit key in filler text; train with --data passkey")
    lengths = "lengths of the text in tokens, such as 128,256,512"
    keys.add_argument("--passkey", type=listed(whole(1)), metavar="N[,N…]", help=lengths)
    depths = "where the key stands, from 0 (first) to 1 (last) (0,0.25,0.5,0.75,1)"
    keys.add_argument("--depths", type=listed(real), metavar="X[,X…]", help=depths)
    keys.add_argument("--samples", type=whole(1, _MOST_KEYS), metavar="N", help="keys for each length and depth (20)")
    keys.add_argument("--seed", type=seed, metavar="N", help="of the keys (0)")
    keys.add_argument("--picture", type=Path, metavar="FILE", help="also draw the table there (.svg or .png)")
    tasks = parser.add_argument_group("tasks", "of lm-evaluation-harness; needs exsel[eval]")
    names = "names of the harness, such as hellaswag,piqa, or a paper's: exclusive-paper, selective-paper"
    tasks.add_argument("--tasks", type=listed(str), metavar="NAME[,NAME…]", help=names)
    tasks.add_argument("--task-path", type=Path, metavar="DIR", help="a folder of your own tasks, whose code may run")
    tasks.add_argument("--num-fewshot", type=whole(0), metavar="N", help="examples before each question (by task)")
    tasks.add_argument("--limit", type=whole(1), metavar="N", help="questions of each task (all)")
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N", help="sequences at a time (%(default)s)")
    add_past_context_argument(parser)
    add_device_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the flags and the tasks, load the model, evaluate, print."""
    require_all("train")
    if arguments.tasks is not None:
        require("lm_eval", "eval")
    for owner, names in _BELONGING.items():
        given = [name for name in names if getattr(arguments, name) is not None]
        if given and getattr(arguments, owner) is None:
            raise ExselError(f"--{given[0].replace('_', '-')} belongs to --{owner}, which is not given: add it")
    if arguments.picture is not None and arguments.picture.suffix not in _PICTURES:
        raise ExselError(f"--picture {arguments.picture}: its name must end with {' or '.join(_PICTURES)}")
    check_file("--picture", arguments.picture)
    with json_output(arguments.json) as write:
        write(_evaluate(arguments, say_model(arguments.model)))
    return 0


def _evaluate(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Run all evaluations asked for, print them, and return them as JSON types."""
    from exsel.float32_products import fast_products
    from exsel.machine import describe_machine, resolve_device

    device = resolve_device(arguments.device)
    tasks = None
    if arguments.tasks is not None:
        from exsel.evaluation.tasks import load_tasks

        tasks = load_tasks(arguments.tasks, task_path=arguments.task_path)
    model, tokenizer = load_checkpoint(folder, device)
    has_loss = bool(arguments.data) or (arguments.passkey is None and tasks is None)
    seq_len = arguments.seq_len or context_of(model.config) or _SEQ_LEN
    for length in (*([seq_len] if has_loss else []), *(arguments.passkey or [])):
        check_length(model, length, past_context=arguments.past_context)
    numbers: dict[str, Any] = {}
    with fast_products(device):
        if has_loss:
            numbers |= _loss(arguments, model, tokenizer, seq_len)
        if arguments.passkey is not None:
            numbers["passkey"] = _passkey(arguments, model, tokenizer)
        if tasks is not None:
            numbers["tasks"] = _tasks(arguments, model, tokenizer, tasks)
    return {**numbers, "model": arguments.model, "machine": describe_machine(device)}


def _loss(arguments: argparse.Namespace, model: Any, tokenizer: Any, seq_len: int) -> dict[str, Any]:
    from exsel.cli.display import evaluation_progress
    from exsel.data import load_evaluation_data
    from exsel.evaluation import evaluate_loss

    blocks, description = load_evaluation_data(
        arguments.data,
        tokenizer=tokenizer,
        seq_len=seq_len,
        pack=arguments.pack,
        text_field=arguments.text_field,
        max_blocks=arguments.max_sequences,
    )
    check_ids(model, [[description.vocab_size - 1]])
    print(f"data: {description.name}, {count(len(blocks))} × {seq_len} tokens\n", flush=True)
    with evaluation_progress() as on_batch, explained(f"{arguments.model} cannot be evaluated"):
        evaluation = evaluate_loss(
            model, blocks, batch_size=arguments.batch_size, device=model.device, on_batch=on_batch
        )
    if not math.isfinite(evaluation.loss):
        raise ExselError(f"the loss of {arguments.model} is {evaluation.loss}: its weights are of no use")
    numbers = {
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte(description.bytes_per_token),
        "tokens": int(evaluation.count.sum()),
    }
    buckets = [{"first": first, "last": end - 1, "loss": loss} for first, end, loss in evaluation.by_position()]
    measures = [[name.replace("_", " "), f"{value:,.4f}"] for name, value in numbers.items() if name != "tokens"]
    _print_table(["Measure", "Value"], [*measures, ["tokens", f"{numbers['tokens']:,}"]])
    positions = [[f"{bucket['first']} to {bucket['last']}", f"{bucket['loss']:.4f}"] for bucket in buckets]
    _print_table(["Position in the sequence", "Loss"], positions)
    return {**numbers, "by_position": buckets, "data": asdict(description)}


def _passkey(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    from exsel.cli.display import evaluation_progress
    from exsel.evaluation import passkey

    given = {"depths": arguments.depths, "samples": arguments.samples, "seed": arguments.seed}
    with evaluation_progress() as on_batch, explained(f"{arguments.model} cannot be asked for passkeys"):
        result = passkey(
            model,
            tokenizer,
            lengths=arguments.passkey,
            batch_size=arguments.batch_size,
            on_batch=on_batch,
            **{name: value for name, value in given.items() if value is not None},
        )
    print(f"passkeys found, of {result.samples} for each length and depth\n")
    rows = [
        [f"{length:,}", *(f"{share:.1%}" for share in (*row, mean))]
        for length, row, mean in zip(result.lengths, result.accuracy, result.by_length, strict=True)
    ]
    if len(rows) > 1:
        rows.append(["all", *(f"{share:.1%}" for share in (*result.by_depth, result.mean))])
    _print_table(["Length", *(f"Depth {depth:.4g}" for depth in result.depths), "All"], rows)
    if arguments.picture is not None:
        from exsel.evaluation.passkey_picture import write_passkey_picture

        write_passkey_picture(result, arguments.picture)
    return result.to_dict()


def _tasks(arguments: argparse.Namespace, model: Any, tokenizer: Any, tasks: Any) -> dict[str, Any]:
    from exsel.cli.display import warn
    from exsel.evaluation.tasks import TASK_SETS, evaluate_tasks

    result = evaluate_tasks(
        model,
        tokenizer,
        tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
    )
    named = {name: result.mean(name) for name in arguments.tasks if name in TASK_SETS}
    means = {name: mean for name, mean in named.items() if mean is not None}
    rows = [
        [score.task, score.metric, *map(_short, (score.value, score.stderr, score.documents, score.fewshot))]
        for score in result.scores
    ]
    rows += [[name, "mean", f"{mean:,.4f}", "–", "–", "–"] for name, mean in means.items()]
    _print_table(["Task", "Metric", "Value", "Std. error", "Documents", "Examples"], rows)
    if result.truncated:
        warn(
            f"{result.truncated:,} of {result.requests:,} requests are longer than the model's context: "
            f"their beginnings were cut off"
        )
    return {**result.to_dict(), "means": means, "lm_eval": version("lm_eval")}


def _short(value: float | None) -> str:
    """``value`` with four decimals, or four digits if it is too large for a table (an untrained model's perplexity)."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from exsel.cli.display import print_table

    names = [str(column) for column in range(len(headings))]
    print_table([dict(zip(names, row, strict=True)) for row in rows], dict(zip(names, headings, strict=True)))
    print()
