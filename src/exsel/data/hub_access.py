"""Access to the Hugging Face hub: with one request only, and without progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import datasets
from huggingface_hub import HfApi

from exsel.errors import first_line

_TIMEOUT_SECONDS = 10.0


def reason_unavailable(name: str, kind: Literal["dataset", "model"]) -> str | None:
    """Why a repository of the hub is not available to this user, in one line; `None` if it is.

    The hub is asked once: `transformers` and `datasets` would retry for most of a minute.
    """
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS)
    # Which exceptions mean "no connection" depends on the HTTP library of the installed huggingface_hub.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets` in the block."""
    were_disabled = datasets.are_progress_bars_disabled()
    if not were_disabled:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()
