"""Errors: a user's mistake, and a missing extra."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType


class ExselError(ValueError):
    """A mistake that the user can correct. The command line shows its text, one or two lines, and exits with 2."""


class UpgradeError(ExselError):
    """The mechanisms cannot be put into a model, or taken out of it."""


class LoadError(ExselError):
    """A file or folder that is damaged, incomplete, or not safe to read."""


class MissingPackageError(ImportError):
    """A package is missing or too old; the message says so and, if one of exsel's extras has it, how to install it.

    The command line shows its text and exits with 2. Any other ``ImportError`` is a bug and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was not enough memory. On the CPU PyTorch says so only in the error's text."""
    words = r"out of memory|can't allocate memory"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn any error in the block into an :class:`ExselError`: ``what``, and the first line of the error's text.

    A damaged file can make a library raise anything: an IndexError, a ZeroDivisionError, a RecursionError.
    """
    try:
        yield
    except ImportError as error:
        # Other libraries raise it without ``name`` for a package that they need. A broken import has a ``name``.
        if error.name is not None or isinstance(error, MissingPackageError):
            raise
        raise MissingPackageError(f"{what}: {first_line(error)}") from error
    except ExselError as error:
        raise ExselError(f"{what}: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise ExselError(f"{what}: {kind}{first_line(error).rstrip(': ')}") from error


#: What each extra installs beside torch, by the name of its import.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "models": ("transformers",),
    "data": ("transformers", "datasets"),
    "report": ("jinja2", "matplotlib"),
    "peft": ("transformers", "peft"),
    "gguf": ("transformers", "gguf"),
    "train": ("transformers", "datasets", "jinja2", "matplotlib", "accelerate", "psutil", "rich", "scipy"),
}


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or raise a MissingPackageError with the command to install ``exsel[extra]``."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingPackageError(f"{module} is not installed: pip install 'exsel[{extra}]'") from error


def require_all(extra: str) -> None:
    """Check that everything of ``exsel[extra]`` is installed, as :func:`require` does, and import nothing."""
    for module in EXTRAS[extra]:
        if importlib.util.find_spec(module) is None:
            raise MissingPackageError(f"{module} is not installed: pip install 'exsel[{extra}]'")
