"""Nothing, in torchvision's place: SGLang imports it for pictures, and its wheels want CUDA's PyTorch."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0"


class _Empty(ModuleType):
    """A module that has every name; what the names mean is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class InterpolationMode:
    """The names that transformers looks up."""

    NEAREST = NEAREST_EXACT = BOX = BILINEAR = HAMMING = BICUBIC = LANCZOS = 0


for _name in ("io", "transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional"):
    _module = _Empty(f"{__name__}.{_name}")
    _module.__spec__, _module.__path__ = ModuleSpec(_module.__name__, None, is_package=True), []
    _module.InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    sys.modules[_module.__name__] = _module
    _parent, _, _child = _module.__name__.rpartition(".")
    setattr(sys.modules[_parent], _child, _module)
