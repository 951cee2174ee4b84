"""Rows that were measured on the CPU, as a file of results; and the command that measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exsel.bench.session import FORMAT
from exsel.files import write_json
from exsel.machine import describe_machine, git_revision


def command_of(module: str, flags: Sequence[str]) -> str:
    """The command that a record names, as a shell takes it."""
    return shlex.join(["python", "-m", module, *flags])


def keep_rows(path: Path, module: str, rows: list[dict[str, Any]]) -> None:
    """Write what a module measured as ``exsel bench`` writes its record, with the command, and say where."""
    record = {
        "format": FORMAT,
        "command": command_of(module, sys.argv[1:]),
        "device": "cpu",
        "dtype": "float32",
        "partial": False,
        "machine": describe_machine("cpu"),
        "git_revision": git_revision(),
        "rows": rows,
    }
    write_json(path, record)
    print(f"kept: {path}")
