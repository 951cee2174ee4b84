"""timm where torchvision is not: what it imports from there transforms images, and no attention layer needs it."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence

import pytest
from torch import nn


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds any module of torchvision, empty but for classes under any name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: types.ModuleType) -> None:
        def stand_in(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(
                name, (nn.Module,), {"BILINEAR": 0, "BICUBIC": 1, "NEAREST": 2, "LANCZOS": 3, "BOX": 4, "HAMMING": 5}
            )

        module.__getattr__ = stand_in  # type: ignore[method-assign]


@contextlib.contextmanager
def _torchvision_stood_in_for() -> Iterator[None]:
    finder = _StandIns()
    sys.meta_path.append(finder)  # after the real one's
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            if isinstance(sys.modules[name].__loader__, _StandIns):
                del sys.modules[name]


def import_timm() -> types.ModuleType:
    """timm, or skip."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed", allow_module_level=True)
    with _torchvision_stood_in_for():
        return importlib.import_module("timm")
