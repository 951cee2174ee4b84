from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exsel.kernels import cpp


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: on a GPU, or in the interpreter (see tests/conftest.py)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> object:
    """Fresh memory holds NaN, so that whatever a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is built, and the cache folder is empty; its path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpp, "_found", None)
    return tmp_path / "cache" / "exsel"
