"""Tell transformers of upgraded models' folders as soon as both packages are imported, in either order.

Importing exsel must not import transformers, which takes seconds, and ``AutoModel.from_pretrained`` must know the
folders after ``import exsel``: so the registration waits for the module that holds transformers' ``AutoConfig``.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

#: The model type in the ``config.json`` of an upgraded model.
MODEL_TYPE = "exsel_upgraded"

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


class _AutoConfigFinder:
    """Finds the module of ``AutoConfig`` as Python does, and registers once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        loader.exec_module = execute_and_register
        return spec


def _register(auto_config: Any) -> None:
    from exsel.registration.config import UpgradedConfig

    auto_config.CONFIG_MAPPING.register(MODEL_TYPE, UpgradedConfig, exist_ok=True)


def register() -> None:
    """Register :class:`exsel.registration.config.UpgradedConfig`: now, or when transformers is imported."""
    if _AUTO_CONFIG in sys.modules:
        _register(sys.modules[_AUTO_CONFIG])
    elif not any(type(finder) is _AutoConfigFinder for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoConfigFinder())
