from __future__ import annotations

import pytest
import torch


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
