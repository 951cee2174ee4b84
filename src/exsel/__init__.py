"""Exclusive and selective attention for PyTorch Transformers.

The operators :func:`exclude`, :func:`attention` and :func:`inverse_temperature`, the configurations
:class:`ExclusiveConfig` and :class:`SelectiveConfig`, modules in :mod:`exsel.nn`, and a transformers model,
:class:`ExselForCausalLM`, imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from exsel.registration import register as _register
from exsel.version import __version__ as __version__

if TYPE_CHECKING:
    from exsel import nn
    from exsel import peft as peft
    from exsel.config import ExclusiveConfig, SelectiveConfig
    from exsel.diagnostics import diagnose
    from exsel.errors import ExselError, LoadError, UpgradeError
    from exsel.functional import attention, exclude, explain_backend, inverse_temperature
    from exsel.kernels.cpp import use_cpp
    from exsel.models import ExselConfig, ExselForCausalLM, ExselModel
    from exsel.pretrained import pull
    from exsel.standalone import export_standalone
    from exsel.training.compare_models import compare
    from exsel.upgrading import downgrade, from_pretrained, support, upgrade
    from exsel.variants import Variant

_HOMES = {
    **dict.fromkeys(("attention", "exclude", "explain_backend", "inverse_temperature"), "exsel.functional"),
    **dict.fromkeys(("ExclusiveConfig", "SelectiveConfig"), "exsel.config"),
    **dict.fromkeys(("ExselError", "LoadError", "UpgradeError"), "exsel.errors"),
    **dict.fromkeys(("ExselConfig", "ExselForCausalLM", "ExselModel"), "exsel.models"),
    **dict.fromkeys(("downgrade", "from_pretrained", "support", "upgrade"), "exsel.upgrading"),
    "compare": "exsel.training.compare_models",
    "diagnose": "exsel.diagnostics",
    "export_standalone": "exsel.standalone",
    "pull": "exsel.pretrained",
    "Variant": "exsel.variants",
    "use_cpp": "exsel.kernels.cpp",
}

__all__ = [
    "ExclusiveConfig",
    "ExselConfig",
    "ExselError",
    "ExselForCausalLM",
    "ExselModel",
    "LoadError",
    "SelectiveConfig",
    "UpgradeError",
    "Variant",
    "attention",
    "compare",
    "diagnose",
    "downgrade",
    "exclude",
    "explain_backend",
    "export_standalone",
    "from_pretrained",
    "inverse_temperature",
    "nn",
    "pull",
    "support",
    "upgrade",
    "use_cpp",
]

_register()


def __getattr__(name: str) -> Any:
    if name in ("nn", "peft"):
        return importlib.import_module(f"exsel.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'exsel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "peft", *(name for name in globals() if name.startswith("__"))])
