"""What the pages' templates share. Needs Jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from exsel.report.comparison import section
from exsel.report.formatting import memory, plain

_LABELS = {
    "sha256": "SHA-256",
    "lr": "learning rate",
    "seq_len": "sequence length",
    "pack": "packing",
    "dtype": "number format",
    "memory_bytes": "memory",
    "head_dim": "head size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key/value heads",
    "hidden_size": "width",
    "torch": "PyTorch",
    "python": "Python",
}


def environment(package: str) -> jinja2.Environment:
    """Templates of a package, which may extend and include those of ``exsel.report``."""
    homes = dict.fromkeys((package, "exsel.report"))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(home, "") for home in homes]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def facts(results: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """What a result says of its set-up: by title a list of names and values, where it holds any.

    Args:
        results: the content of a result's JSON file.
        titles: by key of ``results`` whose value is a dictionary, the title of its list.
    """
    return {
        title: [
            (_LABELS.get(name, name.replace("_", " ")), memory(value) if name == "memory_bytes" else plain(value))
            for name, value in section(results, key).items()
        ]
        for key, title in titles.items()
        if section(results, key)
    }
