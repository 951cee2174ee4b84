"""What ``compare`` and ``train`` share: flags, the settings that these give, and the way to a trained model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exsel.cli.collecting import collect_as_usual
from exsel.cli.flags import MODEL, add_data_arguments, add_device_argument, large_count, listed, real, whole
from exsel.cli.outputs import check_out, resume_command
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import ExselError

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.progress import Progress
    from exsel.training.settings import Settings
    from exsel.variants import Variant


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run, single or one of several."""
    fine_tuning = parser.add_argument_group("fine-tuning")
    fine_tuning.add_argument(
        "--from",
        dest="source",
        metavar="MODEL",
        help="begin with a causal language model that exists, and put into it what each variant says: "
        f"{MODEL}; its tokenizer is used",
    )
    text = "with --from: train all parameters, or only the new ones of the mechanisms (%(default)s)"
    fine_tuning.add_argument("--train", choices=["all", "new"], default="all", help=text)
    model = parser.add_argument_group("model")
    text = (
        "tiny, 25m, 124m, 0.7b, 1.4b, 2.7b; a path to a transformers configuration; or a function of your own that "
        "builds a model, as package.module:name or file.py:name (tiny)"
    )
    model.add_argument("--model", help=text)
    text = (
        "of the exclusive variants above: a strength (0.5, learned), or fields of ExclusiveConfig, as strength=learned "
    )
    model.add_argument("--exclusive", nargs="+", default=[], metavar="VALUE", help=f"{text}layers=last:2")
    text = "of the selective variants above: fields of SelectiveConfig, such as token=mlp value_position=false"
    model.add_argument("--selective", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    data = parser.add_argument_group("data")
    add_data_arguments(data)
    data.add_argument("--tokenizer", help="bytes, or a Hugging Face tokenizer's name, folder or file (bytes)")
    data.add_argument("--seq-len", type=whole(1), metavar="N", help="tokens a sequence (by model)")
    text = "attend and count positions across the documents of a sequence, or restart with each (%(default)s)"
    data.add_argument("--pack", choices=["concat", "isolate"], default="concat", help=text)
    training = parser.add_argument_group("training")
    for flag, kind, default, text in (
        ("--tokens", large_count, None, "tokens to train on, as 500k, 2.5b … (by model)"),
        ("--batch-size", whole(1), None, "sequences a step (by model)"),
        ("--accumulation", whole(1), 1, "parts in which a step is computed (%(default)s)"),
        ("--warmup-steps", whole(0), None, "of the learning rate (a twentieth, 2000 at most)"),
        ("--weight-decay", real, 0.1, "of matrices (%(default)s)"),
        ("--token-lr", real, 1e-3, "peak learning rate of temperatures' token terms and of strengths (%(default)s)"),
        ("--position-lr", real, 1e-3, "peak learning rate of temperatures' positional terms (%(default)s)"),
        ("--evaluations", whole(1), None, "points of the validation curve (12)"),
        ("--evaluation-blocks", whole(1), None, "sequences that validate (32)"),
        ("--save-every", whole(0), None, "steps between checkpoints (a fifth of the run, 500 at most)"),
    ):
        # A flag is named like its field in Settings, except that -lr stands for -learning-rate.
        name = flag.removeprefix("--").replace("-lr", "-learning-rate").replace("-", "_")
        metavar = "X" if kind is real else "N"
        training.add_argument(flag, dest=name, type=kind, default=default, metavar=metavar, help=text)
    text = "text to evaluate the trained model on too, by a name of your own; PATH as in --data"
    training.add_argument(
        "--eval", dest="evaluation_sets", type=_named, nargs="+", default=[], metavar="NAME=PATH", help=text
    )
    text = "look for a key in texts of these lengths at the end of each run, as `exsel eval --passkey` does"
    training.add_argument("--passkey", type=listed(whole(1)), default=[], metavar="N[,N…]", help=text)
    text = "ask each trained model tasks of lm-evaluation-harness, as `exsel eval --tasks` does; needs exsel[eval]"
    training.add_argument("--tasks", type=listed(str), default=[], metavar="NAME[,NAME…]", help=text)
    machine = parser.add_argument_group("machine")
    add_device_argument(machine)
    dtypes = ["auto", "float32", "bfloat16"]
    machine.add_argument("--dtype", choices=dtypes, default="auto", help="auto: bfloat16 on cuda")
    text = "torch.compile (default: where it pays, from 500 steps on)"
    machine.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help=text)
    text = "several processes (torchrun) divide the model among them; by default each has a copy"
    machine.add_argument("--shard", action="store_true", help=text)
    text = "save memory: the backward pass computes each layer anew"
    machine.add_argument("--activation-checkpointing", action="store_true", help=text)
    text = "tensorboard, wandb, trackio … as in transformers"
    machine.add_argument("--report-to", nargs="+", default=[], metavar="LOGGER", help=text)
    output = parser.add_argument_group("output")
    out = Path("runs", parser.prog.split()[-1])
    output.add_argument("--out", type=Path, metavar="DIR", default=out, help="where everything goes (%(default)s)")
    output.add_argument("--resume", action="store_true", help="go on with what is in --out")
    output.add_argument("--overwrite", action="store_true", help="replace what exsel wrote into --out")


class Source(NamedTuple):
    """The model of --from: its folder or name on the hub, its variant, and for how many tokens it was made."""

    path: str
    variant: str
    context: int | None


def source_of(arguments: argparse.Namespace) -> Source | None:
    """The model of --from, if there is one."""
    if arguments.source is None:
        return None
    from exsel.cli.checkpoint import find_model
    from exsel.lengths import context_of

    for flag, value in (("model", arguments.model), ("tokenizer", arguments.tokenizer)):
        if value is not None:
            raise ExselError(f"--{flag} is of a new model, and --from begins with one that has its own: leave one out")
    text: str = arguments.source
    path = find_model(text, "--from")
    if Path(text).exists() and Path(path).resolve().is_relative_to(arguments.out.resolve()):
        raise ExselError(f"--from {text} lies in --out {arguments.out}, which this run writes: choose another --out")

    from exsel.training.saved_models import read_source, source_variant

    config = read_source(path)
    return Source(path=path, variant=source_variant(config), context=context_of(config))


def build_settings(
    arguments: argparse.Namespace,
    begun_with: Source | None,
    *,
    variant: Variant,
    learning_rate: float | None,
    seed: int,
) -> Settings:
    """The settings that the flags of :func:`add_training_arguments` give, for the model of :func:`source_of`."""
    from exsel.machine import can_compile, resolve_device
    from exsel.training.settings import Settings, check_loggers, with_defaults
    from exsel.variants import OWN_RATES

    source = None if begun_with is None else begun_with.path
    device = resolve_device(arguments.device)
    check_loggers(arguments.report_to)
    launched = _launched_dtype(arguments.dtype)
    evaluation_sets = dict(arguments.evaluation_sets)
    if len(evaluation_sets) < len(arguments.evaluation_sets):
        raise ExselError(f"--eval uses a name twice: {', '.join(name for name, _ in arguments.evaluation_sets)}")
    if arguments.compile and not can_compile():
        raise ExselError(
            "--compile needs a C++ compiler (g++ or clang++), and there is none: install one or leave it out"
        )
    names = {field.name for field in fields(Settings)}
    said = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    if arguments.dtype == "auto":
        del said["dtype"]
    values = {
        **{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()},
        "variant": variant,
        "seed": seed,
        "model": source or arguments.model or "tiny",
        "source": source,
        "train": arguments.train,
        "tokenizer": source or arguments.tokenizer or "bytes",
        "device": device,
        "evaluation_sets": evaluation_sets,
    }
    values |= {name: rate for name in OWN_RATES if (rate := getattr(variant, name)) is not None}
    if learning_rate is not None:
        values["learning_rate"] = learning_rate
    if launched is not None:
        values["dtype"] = launched
    return Settings(**with_defaults(values, begun_with and begun_with.context))


def _named(text: str) -> tuple[str, str]:
    """The type of a flag that takes NAME=VALUE."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, value


def _launched_dtype(said: str) -> str | None:
    """The --dtype that ``accelerate launch --mixed_precision`` stands for, if any."""
    for name, asked in (("FSDP", "--use_fsdp"), ("DEEPSPEED", "--use_deepspeed"), ("MEGATRON_LM", "--use_megatron_lm")):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ExselError(f"accelerate's {asked} has no effect here: leave it out, and divide a model by --shard")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    dtype = {"no": None, "bf16": "bfloat16"}.get(precision, precision)
    if dtype not in (None, "bfloat16") or (dtype is not None and said not in ("auto", dtype)):
        raise ExselError(
            f"accelerate's --mixed_precision {precision} contradicts --dtype {said}: leave it out, or give bf16"
        )
    return dtype


def mechanism_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --exclusive and --selective say, as arguments of :func:`exsel.variants.choose_variants`."""
    return {
        "exclusive": _mechanism(ExclusiveConfig, "exclusive", arguments.exclusive),
        "selective": _mechanism(SelectiveConfig, "selective", arguments.selective),
    }


def _mechanism(kind: Any, flag: str, words: Sequence[str]) -> Any:
    """A mechanism's flag as ``kind.read`` takes it: one value, or NAME=VALUE fields; the default if it is absent."""
    misread = ExselError(f"--{flag} takes true, false or NAME=VALUE, each name once; got {' '.join(words)!r:.80}")
    given: Any = True
    if len(words) == 1 and "=" not in words[0]:
        given = _value(words[0])
    elif words:
        pairs = [word.partition("=") for word in words]
        given = {name: _value(text) for name, _, text in pairs}
        if len(given) < len(pairs) or not all(separator for _, separator, _ in pairs):
            raise misread
    try:
        return kind.read(given)
    except TypeError:
        raise misread from None
    except ValueError as error:
        raise ExselError(f"--{flag}: {error}") from error


def _value(text: str) -> Any:
    """true, false, an index or several (0,2,5), a number, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text
    return numbers if "," in text else numbers[0]


def check_folder(arguments: argparse.Namespace) -> None:
    """Check --out, --overwrite and --resume of ``train`` and ``compare``."""
    from exsel.training.output_folder import is_comparison, is_run

    kinds = {"train": is_run, "compare": is_comparison}
    goes_on = check_out(arguments, lambda folder: is_run(folder) or is_comparison(folder), "exsel")
    if goes_on and not kinds[arguments.command](arguments.out):
        other = next(command for command, is_kind in kinds.items() if is_kind(arguments.out))
        raise ExselError(f"--out {arguments.out} was written by `exsel {other}`: resume it with that command")


def check_first(arguments: argparse.Namespace) -> Source | None:
    """Check, before anything heavy is imported, the output folder (of one process) and --from."""
    if _is_alone():  # the first of several processes alone may look into it
        check_folder(arguments)
    return source_of(arguments)


def _is_alone() -> bool:
    """Whether no launcher has started several processes."""
    return "WORLD_SIZE" not in os.environ


def say_what_begins(arguments: argparse.Namespace, variants: Iterable[Variant], seeds: Iterable[int]) -> None:
    """Print what is to be trained, and into which folder, before anything heavy is imported (of one process)."""
    if _is_alone():
        names, each = ", ".join(variant.name for variant in variants), ", ".join(map(str, seeds))
        print(f"to train: {names}; seed {each}; into {arguments.out}", flush=True)


def run_session(
    arguments: argparse.Namespace,
    runs: Sequence[Settings],
    work: Callable[[PackedData, Path, Progress], None],
    *,
    prepare: Callable[[PackedData], Sequence[Settings] | None] | None = None,
) -> int:
    """Check everything, load the data, prepare, and only then touch the output folder and work.

    ``prepare`` may return the runs as they will be, where the settings depend on the data. Returns the exit code.
    """
    from exsel.cli.display import make_progress, warn
    from exsel.files import locked
    from exsel.machine import can_compile
    from exsel.training.estimate import estimate
    from exsel.training.final_measurements import check_answers
    from exsel.training.model_checks import check_new_models
    from exsel.training.output_folder import clear_output
    from exsel.training.processes import joined
    from exsel.training.run import Interrupted, check_shared
    from exsel.training.run_model import check_disk, load_run_data, sketch_model
    from exsel.training.settings import COMPILED_STEPS, one_a_variant

    out: Path = arguments.out
    settings = runs[0]

    def check() -> None:
        check_folder(arguments)
        for run in one_a_variant(runs):
            sketch_model(run, vocab_size=256)  # raises if heads, layers or strengths do not fit

    def load() -> PackedData:
        return load_run_data(settings, part=(processes.rank, processes.count))

    def clear() -> None:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            if arguments.overwrite:
                clear_output(out)

    with joined(settings.device) as processes, processes.quiet():
        check_shared(settings, processes)
        processes.first(check)
        data = processes.in_turn(load)
        described = data.description
        processes.first(lambda: check_disk(runs, described.vocab_size, out))
        size = "streamed" if described.train_tokens is None else f"{described.train_tokens:,} tokens"
        print(f"data: {described.name}, {size}, to train on", flush=True)
        check_new_models(runs, data)
        check_answers(settings, data, processes.count)
        if prepare is not None:
            runs = prepare(data) or runs
            data = data.cut(runs[0].evaluation_blocks)
        is_eager = arguments.compile is None and not can_compile() and runs[0].steps >= COMPILED_STEPS
        if is_eager and processes.is_first:
            warn("no C++ compiler (g++ or clang++) found: training runs eager, without torch.compile")
        print(estimate(runs, described.vocab_size, processes.count), flush=True)
        processes.first(clear)
        collect_as_usual()
        try:
            with closing(make_progress()) as progress:
                work(data, out, progress)
        except Interrupted as stop:
            print(f"\n{stop}; go on with:\n  {resume_command(arguments.given)}", flush=True)
            return 128 + stop.signal
    return 0
