"""The flags that commands share, and what they mean."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from exsel.errors import ExselError

if TYPE_CHECKING:
    from exsel.training.settings import Settings, SizeDefaults

Value = TypeVar("Value")

#: What a command is told to load.
MODEL = "a run's folder, a folder with a model that transformers saved (upgraded or not), or a name on the hub"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--data and --text-field."""
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="text, .jsonl or .parquet files, folders or globs of them, made-up documents with a key to find "
        "(passkey[:length=N,count=N,seed=N]), or a Hugging Face data set (name or name:config; streamed); "
        "default: the Python standard library's own source",
    )
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="the field that holds the text (%(default)s)"
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write the answers there; - to standard output, and the rest to standard error",
    )


def add_past_context_argument(parser: argparse.ArgumentParser) -> None:
    """--past-context."""
    parser.add_argument(
        "--past-context",
        action="store_true",
        help="also take sequences longer than those that the model was made for, if it has positions for them",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")


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
    training.add_argument("--tokens", type=_count, metavar="N", help="tokens to train on, as 500k, 2.5b … (by model)")
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


# Of a file, in bytes: 255 on the file systems there are, and some for the temporary name.
_LONGEST_NAME = 249
#: More than any count here can mean, and no more than what 64 bits and floating-point numbers hold.
_MOST = 10**15


def whole(least: int, most: int = _MOST) -> Callable[[str], int]:
    """The type of a flag that takes a whole number of at least ``least`` and at most ``most``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
        if value < least and most == _MOST:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must lie between {least} and {most}, got {value}")
        return value

    return read


#: Of a flag that takes a seed.
seed = whole(0, 2**32 - 1)


def number(text: str) -> float:
    """The type of a flag that takes a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None


def listed(kind: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """The type of a flag that takes values with commas between."""

    def read(text: str) -> list[Value]:
        return [kind(part.strip()) for part in text.split(",")]

    return read


def _count(text: str) -> int:
    scales = {"k": 10**3, "m": 10**6, "b": 10**9}
    digits, scale = (text[:-1], scales[text[-1].lower()]) if text[-1:].lower() in scales else (text, 1)
    try:
        count = float(digits.replace("_", "")) * scale
        return whole(1)(str(int(count)))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"not a number: {text!r} (examples: 819200, 500k, 2.5b)") from None


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
    from exsel.training.environment import can_compile, check_loggers, resolve_device
    from exsel.training.settings import DEFAULTS, Settings

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


def check_folder(folder: Path) -> None:
    """Check that an output folder is one, or can be made.

    Raises:
        ExselError: it is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ExselError(f"--out {folder} is a file: name a folder")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ExselError(f"--out {folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExselError(f"--out {folder} cannot be written: no permission to write into {existing}")


def check_out(arguments: argparse.Namespace, is_ours: Callable[[Path], bool], writer: str) -> bool:
    """Check what --out, --overwrite and, where a command has it, --resume say together, and change nothing.

    Args:
        arguments: with ``out``, ``overwrite`` and perhaps ``resume``.
        is_ours: whether a folder holds what may be gone on with or replaced.
        writer: who writes such folders, in words.

    Returns:
        Whether there is something to go on with.

    Raises:
        ExselError: both flags, nothing to resume, a folder that holds something and neither flag was given, or
            something that is not ours, one in which another process is at work, or one that cannot be written.
    """
    from exsel.files import locked

    folder: Path = arguments.out
    resumes: bool = getattr(arguments, "resume", False)
    if resumes and arguments.overwrite:
        raise ExselError("--resume keeps what is there and --overwrite replaces it: give one of them")
    check_folder(folder)
    if not folder.exists() or not any(folder.iterdir()):
        if resumes:
            raise ExselError(f"--out {folder} holds nothing to resume: leave out --resume")
        return False
    if not is_ours(folder):
        raise ExselError(f"--out {folder} holds files that {writer} did not write: choose another folder")
    if not (resumes or arguments.overwrite):
        resume = "--resume to go on with it or " if hasattr(arguments, "resume") else ""
        raise ExselError(f"--out {folder} is not empty: add {resume}--overwrite to replace it")
    with locked(folder):  # whoever writes there locks it again: this says it before any work
        return resumes


def check_file(flag: str, path: Path | None) -> None:
    """Check that a file can be written, if one is named; ``-`` is standard output.

    Raises:
        ExselError: it cannot.
    """
    if path is None or str(path) == "-":
        return
    # A device or a pipe would be replaced by a file.
    is_writable = (path.is_file() or not path.exists()) and os.access(path.absolute().parent, os.W_OK | os.X_OK)
    if not is_writable or len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ExselError(f"{flag} {path} cannot be written: name a file in a folder that exists")


@contextmanager
def json_output(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """Something that writes a command's ``--json``; for standard output all else goes to standard error."""
    from exsel.files import write_json

    check_file("--json", path)
    if str(path) != "-":
        yield lambda value: None if path is None else write_json(path, value)
        return
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        yield lambda value: print(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), file=out, flush=True
        )


def check_output(arguments: argparse.Namespace) -> None:
    """Check the output folder, and change nothing.

    Raises:
        ExselError: it holds something and neither flag was given, it holds something that is not exsel's or not of
            this command, or it cannot be written.
    """
    from exsel.training.layout import is_comparison, is_run

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
    from exsel.training.layout import clear_output

    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if arguments.overwrite:
            clear_output(folder)
    return folder


def command_line(given: Sequence[str]) -> str:
    """The command that was given, as a shell would take it again."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = [sys.executable, "-m", program.parent.name]
    elif program.name == "exsel" and shutil.which("exsel") != str(program.absolute()):
        words = [str(program)]
    else:
        words = ["exsel"]
    return shlex.join([*words, *given])


def resume_command(given: Sequence[str]) -> str:
    """The command that goes on after an interruption."""
    return command_line([*(argument for argument in given if argument not in ("--overwrite", "--resume")), "--resume"])
