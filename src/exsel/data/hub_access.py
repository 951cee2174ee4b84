"""Whether the Hugging Face hub has something, asked once: the libraries above it retry for most of a minute."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi

from exsel.errors import first_line

_TIMEOUT_SECONDS = 10.0


def reason_unavailable(name: str, kind: Literal["dataset", "model"]) -> str | None:
    """Ask the hub for a repository.

    Args:
        name: ``owner/name``, or ``name`` alone for the oldest ones.
        kind: of repository; tokenizers are in those of models.

    Returns:
        `None` if it is there for this user, otherwise the reason in one line.
    """
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS)
    # Which exceptions mean "no connection" depends on the HTTP library of the installed huggingface_hub.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None
