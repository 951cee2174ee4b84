"""``exsel eval``: how well a model predicts text, finds a key in it, and answers the questions of known tasks."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from exsel.cli.flags import (
    MODEL,
    add_data_arguments,
    add_device_argument,
    add_json_argument,
    add_past_context_argument,
    listed,
    number,
    seed,
    whole,
)
from exsel.cli.outputs import check_file, json_output
from exsel.errors import ExselError, explained

_PICTURES = (".svg", ".png")
# A key has five digits, and the first is not 0.
_MOST_KEYS = 90_000
# Where neither the flags nor the model say how long a sequence is.
_SEQ_LEN = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    loss = parser.add_argument_group("loss", "evaluated if --data or neither --passkey nor --tasks is given")
    add_data_arguments(loss)  # type: ignore[arg-type]
    loss.add_argument("--seq-len", type=whole(1), metavar="N", help="tokens a sequence (the model's context)")
    loss.add_argument("--pack", choices=["concat", "isolate"], default="concat", help="as in training (%(default)s)")
    loss.add_argument(
        "--max-sequences", type=whole(1), metavar="N", help="at most so many sequences, evenly spread (all)"
    )
    keys = parser.add_argument_group("passkey", "find a five-digit key in filler text; train with --data passkey")
    keys.add_argument(
        "--passkey",
        type=listed(whole(1)),
        metavar="N[,N…]",
        help="lengths of the text in tokens, such as 128,256,512",
    )
    keys.add_argument(
        "--depths",
        type=listed(number),
        metavar="X[,X…]",
        help="where the key stands, from 0 (first) to 1 (last) (0,0.25,0.5,0.75,1)",
    )
    keys.add_argument("--samples", type=whole(1, _MOST_KEYS), metavar="N", help="keys for each length and depth (20)")
    keys.add_argument("--seed", type=seed, metavar="N", help="of the keys (0)")
    keys.add_argument("--picture", type=Path, metavar="FILE", help="also draw the table there (.svg or .png)")
    tasks = parser.add_argument_group("tasks", "of lm-evaluation-harness; needs exsel[eval]")
    tasks.add_argument(
        "--tasks",
        type=listed(str),
        metavar="NAME[,NAME…]",
        help="names of the harness, such as hellaswag,piqa, or a paper's: exclusive-paper, selective-paper",
    )
    tasks.add_argument("--task-path", type=Path, metavar="DIR", help="a folder of your own tasks, whose code may run")
    tasks.add_argument("--num-fewshot", type=whole(0), metavar="N", help="examples before each question (by task)")
    tasks.add_argument("--limit", type=whole(1), metavar="N", help="questions of each task (all)")
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N", help="sequences at a time (%(default)s)")
    add_past_context_argument(parser)
    add_device_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the flags and the tasks, load the model, evaluate, print."""
    from exsel.errors import require, require_all

    require_all("train")
    if arguments.tasks is not None:
        require("lm_eval", "eval")
    _check(arguments)
    with json_output(arguments.json) as write:
        write(_evaluate(arguments))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for owner, names in {
        "passkey": ("depths", "samples", "seed", "picture"),
        "tasks": ("task_path", "num_fewshot", "limit"),
    }.items():
        given = [name for name in names if getattr(arguments, name) is not None]
        if given and getattr(arguments, owner) is None:
            raise ExselError(f"--{given[0].replace('_', '-')} belongs to --{owner}, which is not given: add it")
    if arguments.picture is not None and arguments.picture.suffix not in _PICTURES:
        raise ExselError(f"--picture {arguments.picture}: its name must end with {' or '.join(_PICTURES)}")
    check_file("--picture", arguments.picture)


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is asked for, printed and as JSON types."""
    from exsel.cli.checkpoint import check_length, load_checkpoint
    from exsel.lengths import context_of
    from exsel.machine import describe_machine, resolve_device

    device = resolve_device(arguments.device)
    tasks = _load_tasks(arguments) if arguments.tasks is not None else None
    model, tokenizer = load_checkpoint(arguments.model, device)
    has_loss = bool(arguments.data) or (arguments.passkey is None and tasks is None)
    seq_len = arguments.seq_len or context_of(model.config) or _SEQ_LEN
    for length in (*([seq_len] if has_loss else []), *(arguments.passkey or [])):
        check_length(model, length, past_context=arguments.past_context)
    numbers: dict[str, Any] = {}
    if has_loss:
        numbers |= _loss(arguments, model, tokenizer, seq_len)
    if arguments.passkey is not None:
        numbers["passkey"] = _passkey(arguments, model, tokenizer)
    if tasks is not None:
        numbers["tasks"] = _tasks(arguments, model, tokenizer, tasks)
    return {**numbers, "model": arguments.model, "machine": describe_machine(device)}


def _loss(arguments: argparse.Namespace, model: Any, tokenizer: Any, seq_len: int) -> dict[str, Any]:
    from dataclasses import asdict

    from exsel.cli.checkpoint import check_ids
    from exsel.cli.display import evaluation_progress, print_table
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
    print(f"data: {description.name}\n")
    rows = [{"name": name.replace("_", " "), "value": f"{value:,.4f}"} for name, value in numbers.items()]
    rows[-1]["value"] = f"{numbers['tokens']:,}"
    print_table(rows, {"name": "Measure", "value": "Value"})
    print()
    buckets = evaluation.by_position()
    print_table(
        [{"positions": f"{first} to {end - 1}", "loss": f"{loss:.4f}"} for first, end, loss in buckets],
        {"positions": "Position in the sequence", "loss": "Loss"},
    )
    print()
    return {
        **numbers,
        "by_position": [{"first": first, "last": end - 1, "loss": loss} for first, end, loss in buckets],
        "data": asdict(description),
    }


def _passkey(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    from exsel.cli.display import evaluation_progress, print_table
    from exsel.evaluation.retrieval import DEPTHS, SAMPLES, passkey

    with evaluation_progress() as on_batch, explained(f"{arguments.model} cannot be asked for passkeys"):
        result = passkey(
            model,
            tokenizer,
            lengths=arguments.passkey,
            depths=DEPTHS if arguments.depths is None else arguments.depths,
            samples=SAMPLES if arguments.samples is None else arguments.samples,
            seed=arguments.seed or 0,
            batch_size=arguments.batch_size,
            on_batch=on_batch,
        )
    print(f"passkeys found, of {result.samples} for each length and depth\n")
    rows = [
        {
            "length": f"{length:,}",
            **{str(depth): f"{share:.1%}" for depth, share in zip(result.depths, row, strict=True)},
        }
        | {"all": f"{mean:.1%}"}
        for length, row, mean in zip(result.lengths, result.accuracy, result.by_length, strict=True)
    ]
    if len(rows) > 1:
        shares = {str(depth): f"{share:.1%}" for depth, share in zip(result.depths, result.by_depth, strict=True)}
        rows.append({"length": "all", **shares, "all": f"{result.mean:.1%}"})
    headings = {str(depth): f"Depth {depth:.4g}" for depth in result.depths}
    print_table(rows, {"length": "Length", **headings, "all": "All"})
    print()
    if arguments.picture is not None:
        from exsel.evaluation.passkey_picture import write_picture

        write_picture(result, arguments.picture)
    return result.to_dict()


def _load_tasks(arguments: argparse.Namespace) -> Any:
    from exsel.evaluation.tasks import load_tasks

    return load_tasks(arguments.tasks, task_path=arguments.task_path)


def _tasks(arguments: argparse.Namespace, model: Any, tokenizer: Any, tasks: Any) -> dict[str, Any]:
    from importlib.metadata import version

    from exsel.cli.display import print_table, warn
    from exsel.evaluation.tasks import TASK_SETS, evaluate_tasks

    result = evaluate_tasks(
        model,
        tokenizer,
        tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
    )
    rows = [
        {
            "task": score.task,
            "metric": score.metric,
            "value": _short(score.value),
            "stderr": "–" if score.stderr is None else _short(score.stderr),
            "documents": "–" if score.documents is None else f"{score.documents:,}",
            "fewshot": "–" if score.fewshot is None else str(score.fewshot),
        }
        for score in result.scores
    ]
    named = {name: result.mean(name) for name in arguments.tasks if name in TASK_SETS}
    means = {name: mean for name, mean in named.items() if mean is not None}
    for name, mean in means.items():
        rows.append({**dict.fromkeys(rows[0], "–"), "task": name, "metric": "mean", "value": f"{mean:,.4f}"})
    headings = {"task": "Task", "metric": "Metric", "value": "Value", "stderr": "Std. error", "documents": "Documents"}
    print_table(rows, {**headings, "fewshot": "Examples"})
    print()
    if result.truncated:
        warn(
            f"{result.truncated:,} of {result.requests:,} requests are longer than the model's context: "
            f"their beginnings were cut off"
        )
    return {**result.to_dict(), "means": means, "lm_eval": version("lm_eval")}


def _short(value: float) -> str:
    """Four decimals, or four digits of what is too large for a table (the perplexity of an untrained model)."""
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4g}"
