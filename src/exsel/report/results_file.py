"""``results.json`` as a file: its version, its schema, and how it is read."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from exsel.errors import ExselError
from exsel.files import read_object
from exsel.report.formatting import number, plain

#: The version of what ``results.json`` holds. It rises when a name changes its meaning or goes.
SCHEMA = 3


def results_schema() -> dict[str, Any]:
    """The JSON Schema of ``results.json``."""
    text = resources.files("exsel.report").joinpath("results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_results(path: Path) -> dict[str, Any]:
    """The content of a ``results.json``.

    Raises:
        ExselError: it cannot be read, or another version of exsel wrote another version of it.
    """
    results = read_object(path)
    version = number(results.get("schema"))
    if version != SCHEMA:
        writer = plain(results.get("exsel_version"))
        is_newer = version is not None and version > SCHEMA
        remedy = "upgrade exsel" if is_newer else "the command that made it, with --resume, writes it anew"
        raise ExselError(
            f"{path} has schema {plain(results.get('schema'))}, written by exsel {writer}, and this exsel reads schema "
            f"{SCHEMA}: {remedy}"
        )
    return results
