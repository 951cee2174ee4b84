"""What attention does inside a model: :func:`diagnose`; alone, the similarity bias and how far temperatures moved."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exsel.diagnostics.diagnosing import diagnose
    from exsel.diagnostics.diagnosis import Diagnosis
    from exsel.diagnostics.trained_attention import similarity_bias, temperature_moves

_HOMES = {
    "Diagnosis": "exsel.diagnostics.diagnosis",
    "diagnose": "exsel.diagnostics.diagnosing",
    "similarity_bias": "exsel.diagnostics.trained_attention",
    "temperature_moves": "exsel.diagnostics.trained_attention",
}

__all__ = ["Diagnosis", "diagnose", "similarity_bias", "temperature_moves"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # A report is read without torch, and a model is diagnosed without datasets.
    if name not in _HOMES:
        raise AttributeError(f"module 'exsel.diagnostics' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
