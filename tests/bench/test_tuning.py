from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pytest
import torch
import triton.errors

from bench.conftest import Watcher
from exsel.bench import tuning
from exsel.bench.cases import Case, Shape
from exsel.bench.timing import Work
from exsel.bench.tuning import LAUNCHES, neighbours, search, tune

START = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}


class Kernel:
    """Pretends to be a launcher and a clock: fastest with 128 × 32 and 8 warps."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.launched: list[dict[str, int]] = []

    def launch(self, config: dict[str, int]) -> Sequence[torch.Tensor]:
        self.last = config
        self.launched.append(config)
        if config["BLOCK_N"] == 128:
            raise triton.errors.TritonError("out of resources")
        return (torch.full((3,), 7.0 if config["num_stages"] == 4 else 1.0),)

    def calibrate(self, work: Work) -> None:
        pass

    def time(self, work: Work) -> dict[str, float]:
        work.run()
        fast = {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8}
        seconds = 1 + sum(abs(value.bit_length() - self.last[name].bit_length()) for name, value in fast.items())
        return {work.name: seconds - 0.9 * (self.last["num_stages"] == 4)}


def test_the_walk_finds_the_fastest_that_is_right(watcher: Watcher) -> None:
    kernel = Kernel()
    best = search(kernel.launch, START, kernel, watcher)
    # Four stages are faster and wrong, a block of 128 keys does not fit.
    assert best.config == {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3}
    assert any(config["num_stages"] == 4 for config in kernel.launched)
    assert "BLOCK_M 64, BLOCK_N 64, num_warps 4, num_stages 3" in watcher.said


def test_neighbours_differ_in_one_step_within_bounds() -> None:
    near = neighbours({"BLOCK_M": 16, "num_warps": 16, "num_stages": 1})
    assert near == [
        {"BLOCK_M": 32, "num_warps": 16, "num_stages": 1},
        {"BLOCK_M": 16, "num_warps": 8, "num_stages": 1},
        {"BLOCK_M": 16, "num_warps": 16, "num_stages": 2},
    ]


def test_what_is_found_has_the_form_of_a_chip_s_file(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr(tuning, "LAUNCHES", {"some_kernel": lambda case: kernel.launch})
    monkeypatch.setattr(tuning, "choose_config", lambda *_: START)
    device = torch.device("cpu")
    case = Case(shape=Shape("", 2, 2, 80), tokens=8, batch=1, device=device, dtype=torch.bfloat16)
    kept: list[dict[str, Any]] = []
    tune([case], kernel, watcher, {"decode": {"2": {}}}, kept.append)
    best = {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3}
    assert kept == [{"decode": {"2": {}}, "some_kernel": {"2": {"128": best}}}]


def test_every_kernel_with_a_configuration_can_be_tuned() -> None:
    defaults = resources.files("exsel.kernels.triton").joinpath("configs", "defaults.json")
    assert set(json.loads(defaults.read_text(encoding="utf-8"))) <= set(LAUNCHES)


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_launchers_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, with blocks as small as they may be."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case(shape=Shape("", 2, 1, 16), tokens=20, batch=1, device=device, dtype=torch.float32)
    small = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
    for module in ("attention", "attention_backward"):  # what is not searched would be chosen
        monkeypatch.setattr(f"exsel.kernels.triton.{module}.choose_config", lambda *_: small)
    outputs = LAUNCHES[name](case)(small)
    assert all(bool(output.isfinite().all()) for output in outputs)
