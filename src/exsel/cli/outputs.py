"""Check where a command will write before it works, and say which command resumes it."""

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
from typing import Any

from exsel.errors import ExselError
from exsel.files import locked, write_json

# The longest file name in bytes: file systems take 255, and a temporary name adds some.
_LONGEST_NAME = 249


def check_out(arguments: argparse.Namespace, is_ours: Callable[[Path], bool], writer: str) -> bool:
    """Check --out, --overwrite and, if the command has it, --resume, and change nothing; returns whether to resume.

    Args:
        arguments: with ``out``, ``overwrite`` and perhaps ``resume``.
        is_ours: whether a folder holds output that may be resumed or replaced.
        writer: in words, what writes such folders.
    """
    folder: Path = arguments.out
    resumes: bool = getattr(arguments, "resume", False)
    if resumes and arguments.overwrite:
        raise ExselError("--resume keeps what is there and --overwrite replaces it: give one of them")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if folder.exists() and not folder.is_dir():
        raise ExselError(f"--out {folder} is a file: name a folder")
    if not existing.is_dir():
        raise ExselError(f"--out {folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExselError(f"--out {folder} cannot be written: no permission to write into {existing}")
    if not folder.exists() or not any(folder.iterdir()):
        if resumes:
            raise ExselError(f"--out {folder} holds nothing to resume: leave out --resume")
        return False
    if not is_ours(folder):
        raise ExselError(f"--out {folder} holds files that {writer} did not write: choose another folder")
    if not (resumes or arguments.overwrite):
        resume = "--resume to go on with it or " if hasattr(arguments, "resume") else ""
        raise ExselError(f"--out {folder} is not empty: add {resume}--overwrite to replace it")
    with locked(folder):  # fails before any work if another process holds the lock
        return resumes


def check_file(flag: str, path: Path | None) -> None:
    """Check that a file can be written, if one is named; ``-`` is standard output."""
    if path is None or str(path) == "-":
        return
    # A device or a pipe would be replaced by a file.
    is_writable = (path.is_file() or not path.exists()) and os.access(path.absolute().parent, os.W_OK | os.X_OK)
    if not is_writable or len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ExselError(f"{flag} {path} cannot be written: name a file in a folder that exists")


@contextmanager
def json_output(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """A function that writes a command's ``--json``; for ``-`` all other output goes to standard error."""
    check_file("--json", path)
    if str(path) != "-":
        yield lambda value: None if path is None else write_json(path, value)
        return
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        yield lambda value: print(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), file=out, flush=True
        )


def command_line(given: Sequence[str]) -> str:
    """The command line, quoted for a shell."""
    program, processes = Path(sys.argv[0]), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if processes != "1":
        machines = os.environ.get("GROUP_WORLD_SIZE", "1")
        words = ["torchrun", *(["--nnodes", machines] if machines != "1" else []), "--nproc-per-node", processes]
        words += ["-m", "exsel"]
    elif program.name == "__main__.py" and program.parent.name in ("exsel", "evidence"):
        words = [sys.executable, "-m", program.parent.name]
    elif program.name == "exsel" and shutil.which("exsel") != str(program.absolute()):
        words = [str(program)]
    else:
        words = ["exsel"]
    return shlex.join([*words, *given])


def resume_command(given: Sequence[str]) -> str:
    """The command that resumes after an interruption."""
    return command_line([*(argument for argument in given if argument not in ("--overwrite", "--resume")), "--resume"])
