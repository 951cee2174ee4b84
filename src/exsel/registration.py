"""Register exsel with transformers as soon as both packages are imported, in either order.

``import exsel`` must not import transformers, which takes seconds. After it, ``AutoModel.from_pretrained`` must load
exsel's models, and every model must accept ``attn_implementation="exsel"``. transformers has no plugins. So a finder
on ``sys.meta_path`` waits for the modules of transformers that hold these registries, and adds exsel's entries.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from exsel.model_folder import MODEL_TYPE


class _Finder:
    """Finds the modules of transformers as usual, and registers exsel's entries after each has run.

    It removes itself after the last of them.
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
    """Register stand-ins for two configuration classes: their own modules import everything that a model needs."""
    from transformers.configuration_utils import PreTrainedConfig

    class Own(PreTrainedConfig):  # type: ignore[misc]
        """Stands for :class:`exsel.ExselConfig`."""

        model_type = "exsel"

        def __new__(cls, **values: Any) -> Any:
            from exsel.models import ExselConfig

            return ExselConfig(**values)

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            from exsel.models import ExselConfig

            return ExselConfig.from_dict(config_dict, **kwargs)

    class Upgraded(PreTrainedConfig):  # type: ignore[misc]
        """Stands for the configuration classes of all upgraded models."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            from exsel.upgrading.transformers_models import read_upgraded_config

            return read_upgraded_config(config_dict, **kwargs)

    for config in (Own, Upgraded):
        sys.modules[_AUTO_CONFIG].CONFIG_MAPPING.register(config.model_type, config, exist_ok=True)


def _register_attention() -> None:
    import exsel.attention_interface  # noqa: F401 (registers itself)


_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
#: The registrations, by the module of transformers that must be imported before.
_REGISTRATIONS: Mapping[str, Callable[[], None]] = {
    _AUTO_CONFIG: _register_configurations,
    "transformers.modeling_utils": _register_attention,
}


def register() -> None:
    """Register everything: now, or when transformers is imported."""
    waiting = {}
    for name, registration in _REGISTRATIONS.items():
        if name in sys.modules:
            registration()
        else:
            waiting[name] = registration
    if waiting and not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(waiting))
