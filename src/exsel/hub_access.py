"""Whether this user can have something from the Hugging Face hub, asked with one request only."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Literal

from exsel.errors import first_line

_TIMEOUT_SECONDS = 10.0


def reason_unavailable(name: str, kind: Literal["dataset", "model"]) -> str | None:
    """Why a repository of the hub is not available to this user, in one line; `None` if it is.

    The hub is asked once: `transformers` and `datasets` would retry for most of a minute.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS)
    # Which exceptions mean "no connection" depends on the HTTP library of the installed huggingface_hub.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


@functools.cache
def _reason_offline(name: str) -> str | None:
    return reason_unavailable(name, "model")


def is_offline(source: str) -> bool:
    """Whether a model can only come from the local cache: it is no folder, and the hub cannot provide it."""
    return not Path(source).exists() and _reason_offline(source) is not None


def reason_nowhere(source: str) -> str | None:
    """Why a model is in no folder, not on the hub and not in its cache, in one line; ``None`` if it is."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not is_offline(source):
        return None
    with suppress(HFValidationError):
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return None
    return _reason_offline(source)
