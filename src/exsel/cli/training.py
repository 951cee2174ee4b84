"""What ``compare`` and ``train`` share: their flags, the settings that these say, and the way to a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exsel.cli.flags import add_data_arguments, add_device_argument, count, number, whole
from exsel.cli.outputs import check_out, resume_command
from exsel.errors import ExselError

if TYPE_CHECKING:
    from exsel.data import PackedData
    from exsel.training.monitor import Progress
    from exsel.training.settings import Settings, SizeDefaults


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What a run is told, whether it is the only one or one of several."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help="tiny, 124m, 0.7b, 1.4b, 2.7b, or a path to a transformers configuration (tiny)",
    )
    model.add_argument(
        "--exclusive",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="of the exclusive variants: a strength (0.5, learned), or fields of ExclusiveConfig, such as "
        "strength=learned layers=last:2",
    )
    model.add_argument(
        "--selective",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the selective variants: fields of SelectiveConfig, such as token=mlp value_position=false",
    )
    data = parser.add_argument_group("data")
    add_data_arguments(data)  # type: ignore[arg-type]
    data.add_argument("--tokenizer", help="bytes, or a Hugging Face tokenizer's name, folder or file (bytes)")
    data.add_argument("--seq-len", type=whole(1), metavar="N", help="tokens a sequence (by model)")
    data.add_argument(
        "--pack",
        choices=["concat", "isolate"],
        default="concat",
        help="attend and count positions across the documents of a sequence, or restart with each (%(default)s)",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--tokens", type=count, metavar="N", help="tokens to train on, as 500k, 2.5b … (by model)")
    training.add_argument("--batch-size", type=whole(1), metavar="N", help="sequences a step (by model)")
    training.add_argument(
        "--accumulation", type=whole(1), default=1, metavar="N", help="parts in which a step is computed (%(default)s)"
    )
    training.add_argument(
        "--warmup-steps", type=whole(0), metavar="N", help="of the learning rate (a twentieth, 2000 at most)"
    )
    training.add_argument("--weight-decay", type=number, default=0.1, metavar="X", help="of matrices (%(default)s)")
    training.add_argument(
        "--selective-lr",
        type=number,
        default=1e-3,
        metavar="X",
        help="peak learning rate of the mechanisms' per-head parameters (%(default)s)",
    )
    training.add_argument(
        "--evaluations", type=whole(1), default=12, metavar="N", help="points of the validation curve (%(default)s)"
    )
    training.add_argument(
        "--evaluation-blocks", type=whole(1), default=32, metavar="N", help="sequences that validate (%(default)s)"
    )
    training.add_argument(
        "--save-every", type=whole(0), metavar="N", help="steps between checkpoints (a fifth of the run, 500 at most)"
    )
    machine = parser.add_argument_group("machine")
    add_device_argument(machine)  # type: ignore[arg-type]
    machine.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: bfloat16 on cuda"
    )
    machine.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile (default: where it can)"
    )
    machine.add_argument(
        "--report-to", nargs="+", default=[], metavar="LOGGER", help="tensorboard, wandb, trackio … as in transformers"
    )
    output = parser.add_argument_group("output")
    command = parser.prog.split()[-1]
    output.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs", command), help="where everything goes (%(default)s)"
    )
    output.add_argument("--resume", action="store_true", help="go on with what is in --out")
    output.add_argument("--overwrite", action="store_true", help="replace what exsel wrote into --out")


def build_settings(
    arguments: argparse.Namespace,
    *,
    variant: str,
    learning_rate: float | None,
    seed: int,
    source: str | None = None,
    train: Literal["all", "new"] = "all",
    defaults: SizeDefaults | None = None,
) -> Settings:
    """The settings that the flags say.

    Args:
        arguments: of :func:`add_training_arguments`.
        variant, learning_rate, seed, source, train: of the settings.
        defaults: for what neither flag nor argument says; by default the model's.

    Raises:
        ExselError: a value that cannot work, an absent device, or a logger that is not installed.
    """
    from exsel.config import ExclusiveConfig, SelectiveConfig
    from exsel.machine import can_compile, resolve_device
    from exsel.training.settings import DEFAULTS, Settings, check_loggers

    if defaults is None:
        defaults = DEFAULTS.get(arguments.model, DEFAULTS["tiny"])
    device = resolve_device(arguments.device)
    check_loggers(arguments.report_to)
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    if arguments.compile and not can_compile():
        raise ExselError(
            "--compile needs a C++ compiler (g++ or clang++), and there is none: install one or leave it out"
        )
    batch_size = arguments.batch_size if arguments.batch_size is not None else defaults.batch_size
    seq_len = arguments.seq_len if arguments.seq_len is not None else defaults.seq_len
    tokens = arguments.tokens if arguments.tokens is not None else defaults.tokens
    steps = tokens // max(1, batch_size * seq_len)
    return Settings(
        variant=variant,
        seed=seed,
        learning_rate=defaults.learning_rate if learning_rate is None else learning_rate,
        model=source or arguments.model or "tiny",
        source=source,
        train=train,
        data=tuple(arguments.data),
        text_field=arguments.text_field,
        tokenizer=source or arguments.tokenizer or "bytes",
        pack=arguments.pack,
        tokens=tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        accumulation=arguments.accumulation,
        exclusive=_mechanism(ExclusiveConfig, "exclusive", arguments.exclusive),
        selective=_mechanism(SelectiveConfig, "selective", arguments.selective),
        warmup_steps=min(2000, steps // 20) if arguments.warmup_steps is None else arguments.warmup_steps,
        weight_decay=arguments.weight_decay,
        selective_learning_rate=arguments.selective_lr,
        evaluations=arguments.evaluations,
        evaluation_blocks=arguments.evaluation_blocks,
        save_every=max(1, min(500, steps // 5)) if arguments.save_every is None else arguments.save_every,
        device=device,
        dtype=dtype,
        compile=can_compile() if arguments.compile is None else arguments.compile,
        report_to=tuple(arguments.report_to),
    )


def default_learning_rate(model: str | None) -> float:
    """The learning rate of a named size, or of the smallest for anything else."""
    from exsel.training.settings import DEFAULTS

    return DEFAULTS.get(model or "tiny", DEFAULTS["tiny"]).learning_rate


def _mechanism(kind: Any, flag: str, words: Sequence[str]) -> Any:
    """What a flag says of a mechanism, by ``kind.read``: one value, or fields; the default where it is not given."""
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


def check_output(arguments: argparse.Namespace) -> None:
    """Check the output folder, and change nothing.

    Raises:
        ExselError: it holds something and neither flag was given, it holds something that is not exsel's or not of
            this command, or it cannot be written.
    """
    from exsel.training.output_folder import is_comparison, is_run

    folder: Path = arguments.out
    kinds = {"train": is_run, "compare": is_comparison}
    goes_on = check_out(arguments, lambda folder: any(is_kind(folder) for is_kind in kinds.values()), "exsel")
    if goes_on and not kinds[arguments.command](folder):
        other = next(command for command, is_kind in kinds.items() if is_kind(folder))
        raise ExselError(f"--out {folder} was written by `exsel {other}`: resume it with that command")


def open_output(arguments: argparse.Namespace) -> Path:
    """The output folder, made or rid of what exsel wrote as the flags say; :func:`check_output` has passed.

    Raises:
        ExselError: another process is at work there.
    """
    from exsel.files import locked
    from exsel.training.output_folder import clear_output

    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if arguments.overwrite:
            clear_output(folder)
    return folder


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
    from exsel.cli.display import make_progress, warn
    from exsel.data import load_data
    from exsel.training.disk import check_disk
    from exsel.training.run import Interrupted
    from exsel.training.run_model import sketch_model

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
