"""Tell transformers of upgraded models' folders as soon as both packages are imported, in either order.

Importing exsel must not import transformers, which takes seconds, and ``AutoModel.from_pretrained`` must know the
folders after ``import exsel``: so the registration waits for the module that holds transformers' ``AutoConfig``.
transformers asks no other package what it registers, so that a finder of modules has to wait for that.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

#: The model type in the ``config.json`` of an upgraded model: Auto classes that do not know it quote it.
MODEL_TYPE = "exsel_upgraded: import exsel first"
#: What other classes quote, of a program that has not imported exsel.
HOW_TO_LOAD = "this model needs exsel, and loads with: import exsel; exsel.from_pretrained(folder)"
#: Entries of a ``config.json`` that let tokenizers load and stop every model, in a program without exsel.
STOP: Mapping[str, str] = {
    "transformers_weights": HOW_TO_LOAD,  # from_pretrained refuses it for the name of a weights file
    "attn_implementation": HOW_TO_LOAD,  # a model refuses it when it is built
    "hidden_size": HOW_TO_LOAD,  # most configurations refuse these two, for they are no numbers
    "vocab_size": HOW_TO_LOAD,
}

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


class _AutoConfigFinder:
    """Has the module of ``AutoConfig`` found as always; once that has run it registers, and takes itself away."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = execute_and_register
        return spec


def _register(auto_config: Any) -> None:
    from exsel.registration.config import OwnConfig, UpgradedConfig

    for config in (OwnConfig, UpgradedConfig):
        auto_config.CONFIG_MAPPING.register(config.model_type, config, exist_ok=True)


def register() -> None:
    """Register what :mod:`exsel.registration.config` holds: now, or when transformers is imported."""
    if _AUTO_CONFIG in sys.modules:
        _register(sys.modules[_AUTO_CONFIG])
    elif not any(type(finder) is _AutoConfigFinder for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoConfigFinder())
