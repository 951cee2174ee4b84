"""The default corpus, which every machine with Python has: the source of the standard library."""

from __future__ import annotations

import platform
import sysconfig
import tokenize
from pathlib import Path

from exsel.errors import ExselError

# pydoc_data is the language reference in English: one generated file, as large as 60 source files.
_EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
)
# Generated when the interpreter is built: it describes that machine.
_GENERATED_PREFIX = "_sysconfigdata"


def corpus_name() -> str:
    """The corpus with the version of the interpreter that it came with."""
    return f"Python {platform.python_version()} standard library"


def read_standard_library(root: Path | None = None) -> dict[str, str]:
    """Read the text of every ``*.py`` in ``root`` (by default the running interpreter's library), by path and sorted.

    Each file is read by its declared encoding. Tests, installed packages, generated and empty files are left out.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    documents: dict[str, str] = {}
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        if path.name.startswith(_GENERATED_PREFIX) or not _EXCLUDED_FOLDERS.isdisjoint(name.split("/")[:-1]):
            continue
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise ExselError(f"{path}, of the Python standard library, cannot be read: {error}") from error
        if text:
            documents[name] = text
    if not documents:
        raise ExselError(f"this Python has no standard library source under {root}: name a text with --data instead")
    return documents
