"""Tell transformers what exsel adds to it as soon as both packages are imported, in either order.

Importing exsel must not import transformers, which takes seconds. After ``import exsel`` ``AutoModel.from_pretrained``
must know the folders of upgraded models, and every model ``attn_implementation="exsel"``. So each registration waits
for the module of transformers that keeps such things. transformers asks no other package what it registers: a finder of
modules has to wait for that.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
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


class _Finder:
    """Has some modules of transformers found as always, and registers what exsel adds once each has run.

    It takes itself away after the last of them.
    """

    def __init__(self, registrations: Mapping[str, Callable[[], None]]) -> None:
        self.waiting = dict(registrations)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.waiting:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if (registration := self.waiting.pop(name, None)) is not None:
                registration()
            if not self.waiting and self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = execute_and_register
        return spec


def _register_configurations() -> None:
    from exsel.registration.config import OwnConfig, UpgradedConfig

    auto_config: Any = sys.modules[_AUTO_CONFIG]
    for config in (OwnConfig, UpgradedConfig):
        auto_config.CONFIG_MAPPING.register(config.model_type, config, exist_ok=True)


def _register_attention() -> None:
    import exsel.registration.attention  # noqa: F401 (registers itself)


_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
#: What is registered, by the module of transformers that must be there for it.
_REGISTRATIONS: Mapping[str, Callable[[], None]] = {
    _AUTO_CONFIG: _register_configurations,
    "transformers.modeling_utils": _register_attention,
}


def register() -> None:
    """Register what there is to register: now, or when transformers is imported."""
    waiting = {}
    for name, registration in _REGISTRATIONS.items():
        if name in sys.modules:
            registration()
        else:
            waiting[name] = registration
    if waiting and not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(waiting))
