"""The Triton projection, compiled for chips that are not here: nothing spills, shared memory suffices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from evidence.benchmarks.kernel_resources import TARGETS, compile_launches

SPILLING = """
import sys
import torch, triton, triton.language as tl
from evidence.benchmarks.kernel_resources import compile_launches

@triton.jit
def kernel(x, SIZE: tl.constexpr):
    at = x + tl.arange(0, SIZE)
    values = tl.load(at)
    tl.store(at, values * tl.sum(values, 0))

for size in (128, 65536):
    (row,) = compile_launches(lambda: kernel[(1,)](torch.zeros(size), size, num_warps=1), sys.argv[1])
    print(row["spilled_bytes"], row["registers"], row["num_warps"])
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: this one has the kernels for the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def resources(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows of the benchmark."""
    finished = run("-m", "evidence.benchmarks.kernel_resources", "--out", folder, *arguments)
    files = list(folder.iterdir())
    assert files, finished.stderr
    rows: list[dict[str, Any]] = json.loads(files[0].read_text())
    return rows


def assert_fits(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["shared_bytes"] <= TARGETS[row["target"]][1], row
        assert 0 < row["registers"] <= 512, row
        if row["head_dim"] <= 128:
            assert row["spilled_bytes"] == 0, row


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_spills_are_seen(target: str, tmp_path: Path) -> None:
    script = tmp_path / "spilling.py"
    script.write_text(SPILLING)
    finished = run(script, target)
    assert finished.returncode == 0, finished.stderr
    small, large = ([int(number) for number in line.split()] for line in finished.stdout.splitlines())
    assert small[0] == 0
    assert large[0] > 100
    assert large[1] > small[1] > 0
    assert small[2] == large[2] == 1


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="Triton's kernels are not interpreted here")
def test_interpreted_kernels_are_refused() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_launches(lambda: None, "sm_90")


@pytest.mark.slow
def test_one_head_dimension(tmp_path: Path) -> None:
    """A part of the matrix below: bfloat16 of 128, on one chip of each maker."""
    rows = resources(tmp_path, "--targets", "sm_90", "gfx942", "--dtypes", "bfloat16", "--head-dims", "128")
    assert {row["target"] for row in rows} == {"sm_90", "gfx942"}
    assert {"project_kernel", "project_backward_kernel"} <= {row["kernel"] for row in rows}
    assert_fits(rows)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", list(TARGETS))
def test_whole_matrix(target: str, tmp_path: Path) -> None:
    assert_fits(resources(tmp_path, "--targets", target))
