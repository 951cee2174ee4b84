"""The flags that several commands have, and the kinds of values that flags take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

#: The help text of a model argument.
MODEL = (
    "a run's folder, a folder with a model that transformers saved (upgraded or not), a GGUF file, a model that "
    "`exsel pull` has fetched, or a name on the hub"
)


def add_data_arguments(parser: Any) -> None:
    """--data and --text-field, for a parser or a group of its flags."""
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="text, .jsonl or .parquet files, folders or globs of them, made-up documents with a key to find "
        "(passkey[:length=N,count=N,seed=N]), or a Hugging Face data set (name or name:config; streamed); "
        "default: the Python standard library's own source",
    )
    text = "the field that holds the text (%(default)s)"
    parser.add_argument("--text-field", default="text", metavar="NAME", help=text)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json."""
    text = "also write the answers there; - to standard output, and the rest to standard error"
    parser.add_argument("--json", type=Path, metavar="FILE", help=text)


def add_past_context_argument(parser: argparse.ArgumentParser) -> None:
    """--past-context."""
    text = "also take sequences longer than those that the model was made for, if it has positions for them"
    parser.add_argument("--past-context", action="store_true", help=text)


def add_device_argument(parser: Any) -> None:
    """--device, for a parser or a group of its flags."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")


#: Larger than any meaningful count, and within what 64-bit integers and floating-point numbers hold exactly.
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


#: The type of a flag that takes a seed.
seed = whole(0, 2**32 - 1)


def real(text: str) -> float:
    """The type of a flag that takes a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None


def large_count(text: str) -> int:
    """The type of a flag that takes a count; the suffixes k, m and b mean thousands, millions and billions."""
    scales = {"k": 10**3, "m": 10**6, "b": 10**9}
    digits, scale = (text[:-1], scales[text[-1].lower()]) if text[-1:].lower() in scales else (text, 1)
    try:
        return whole(1)(str(int(float(digits.replace("_", "")) * scale)))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"not a number: {text!r} (examples: 819200, 500k, 2.5b)") from None


def listed(kind: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """The type of a flag that takes values with commas between."""
    return lambda text: [kind(part.strip()) for part in text.split(",")]
