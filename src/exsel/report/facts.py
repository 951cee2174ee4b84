"""What a result says of its set-up, as titled lists for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from exsel.report import formatting

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


class Facts(NamedTuple):
    """A titled list of names and values in the set-up."""

    title: str
    items: list[tuple[str, str]]


def facts(results: Mapping[str, Any], titles: Mapping[str, str]) -> list[Facts]:
    """The lists of a result, without those of which it holds nothing.

    Args:
        results: the content of a result's JSON file.
        titles: by key of ``results`` whose value is a dictionary, the title of its list.
    """
    lists = []
    for key, title in titles.items():
        content = results.get(key)
        if isinstance(content, Mapping) and content:
            lists.append(Facts(title, [(_label(name), _shown(name, value)) for name, value in content.items()]))
    return lists


def _shown(name: str, value: object) -> str:
    return formatting.memory(value) if name == "memory_bytes" else formatting.plain(value)


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))
