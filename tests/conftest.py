from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator

import pytest
import torch

from headless import Browser

# Before any kernel is imported: without a GPU Triton's kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A job in the background of a script inherits SIGINT ignored, and hands that on to its children.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whole modules move: their fixtures are made once.
    first = {item.path for item in items if item.get_closest_marker("first")}
    items.sort(key=lambda item: item.path not in first)


def pytest_collection_finish() -> None:
    # Accelerate collects garbage after each training run. It need not look through all modules each time, which takes
    # half the time of a small run.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running
