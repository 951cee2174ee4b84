from __future__ import annotations

import os

import pytest
import torch

# Before any kernel is imported: without a GPU Triton's kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
