"""What attention does inside a trained model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exsel.diagnostics.similarity import similarity_bias

_HOMES = {"similarity_bias": "exsel.diagnostics.similarity"}

__all__ = ["similarity_bias"]


def __getattr__(name: str) -> Any:
    # A report is read without torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'exsel.diagnostics' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
