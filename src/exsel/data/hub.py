"""Data sets of the Hugging Face hub, read as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import datasets
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from exsel.data.documents import no_progress_bars
from exsel.data.splitting import is_validation, key_of
from exsel.data.text_files import text_of
from exsel.errors import ExselError, first_line
from exsel.hub_access import reason_unavailable

_SPEC = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")
_VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class StreamedDocuments:
    """The documents of a stream; each iteration reads it from its beginning."""

    stream: IterableDataset
    name: str
    text_field: str
    keep: Literal["all", "train", "validation"]
    """Every document, or those which the hash of their content puts on one side."""

    def part(self, rank: int, count: int) -> StreamedDocuments:
        """The documents of one process of so many: whole files if they divide equally, otherwise every so-many-th."""
        return self if count == 1 else replace(self, stream=split_dataset_by_node(self.stream, rank, count))

    def __iter__(self) -> Iterator[str]:
        """Yield the documents that are kept and not empty."""
        for row in self.stream:
            text = text_of(row, self.name, self.text_field)
            if text and (self.keep == "all" or is_validation(key_of(text)) == (self.keep == "validation")):
                yield text


def open_hub(spec: str, text_field: str) -> tuple[StreamedDocuments, StreamedDocuments]:
    """Open a data set, ``name`` or ``name:configuration``, for streaming: its train and its validation documents.

    They are the data set's own splits; or its single split, divided by the hash of each document's content (5%
    validate).
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ExselError(
            f"{spec!r} is neither a file, folder or glob nor a data set: use a path, name or name:configuration"
        )
    if reason := reason_unavailable(match["name"], "dataset"):
        raise _not_loaded(spec, reason)
    return open_stream(match["name"], match["config"], text_field=text_field, label=spec)


def open_stream(
    path: str, config: str | None = None, *, text_field: str, label: str
) -> tuple[StreamedDocuments, StreamedDocuments]:
    """Open the data set that `datasets.load_dataset` loads by ``path`` and ``config``; otherwise as `open_hub`."""
    try:
        with no_progress_bars():
            splits = datasets.load_dataset(path, config, streaming=True)
    # A name that is not there, no network, a refused licence, an unknown configuration, a data set made by a script.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _not_loaded(label, first_line(error)) from error
    first = "train" if "train" in splits else next(iter(splits))
    own = next((split for split in _VALIDATION_SPLITS if split in splits), first)

    def side(split: str, name: Literal["train", "validation"]) -> StreamedDocuments:
        return StreamedDocuments(
            stream=splits[split], name=label, text_field=text_field, keep=name if own == first else "all"
        )

    train, validation = side(first, "train"), side(own, "validation")
    if next(iter(train), None) is None:
        raise ExselError(f"{label}: split {first!r} holds no text in field {text_field!r}")
    return train, validation


def _not_loaded(label: str, reason: str) -> ExselError:
    return ExselError(f"no file or folder {label}, and no Hugging Face data set could be loaded by that name: {reason}")
