"""Whether this user can have something from the Hugging Face hub, asked with one request only."""

from __future__ import annotations

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
