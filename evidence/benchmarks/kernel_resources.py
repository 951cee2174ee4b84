# mypy: disable-error-code="import-untyped"
"""Registers, spills and shared memory of the Triton projection on chips that are not here.

    python -m evidence.benchmarks.kernel_resources [--targets sm_90 …] [--head-dims 128 …] [--dtypes bfloat16 …]
        [--out evidence/benchmarks/results]

Triton compiles for any target without a device. Each variant is launched as a user would launch it, on tensors of the
CPU; what the launch would have run is compiled and its binary read. Exits with 1 if a kernel spills at a head
dimension of at most 128 or asks for more shared memory than a program may have. ``--out`` writes
kernel_resources_tritonVERSION.json there. The kernels must not have been imported for Triton's interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from exsel.files import write_json
from exsel.kernels import triton_passes

#: From architectures to how Triton names them, and the shared memory that one program may use, in bytes.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166912),
    "sm_86": (GPUTarget("cuda", 86, 32), 101376),
    "sm_90": (GPUTarget("cuda", 90, 32), 232448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65536),
}
HEAD_DIMS = (16, 32, 64, 80, 128, 256)
DTYPES = ("bfloat16", "float32")
EPS = 1e-12
TOKENS, HEADS, KV_HEADS = 256, 8, 2

Row = dict[str, Any]


def project(head_dim: int, dtype: torch.dtype, *, strength: bool = False) -> None:
    y, v, row = inputs(head_dim, dtype)
    triton_passes.project(y, v, row if strength else None, EPS, y, row)


def project_backward(
    head_dim: int, dtype: torch.dtype, *, strength: bool = False, from_z: bool = False, wanted: str = "dy dv"
) -> None:
    x, v, row = inputs(head_dim, dtype)
    alpha, along = row if strength else None, row if from_z else None
    dy, dv = x if "dy" in wanted else None, v if "dv" in wanted else None
    triton_passes.project_backward(x, x, v, alpha, EPS, along, dy, dv, alpha, accumulate=wanted == "dv")


def inputs(head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """y and v as a model has them, [B, H, T, D] views of [B, T, H, D], and a number a token and head in float32."""
    y, v = (torch.zeros(2, TOKENS, heads, head_dim, dtype=dtype).transpose(1, 2) for heads in (HEADS, KV_HEADS))
    return y, v, torch.zeros(2, HEADS, TOKENS)


#: From what the results call a launch to the launch and its options.
LAUNCHES: dict[tuple[str, str], tuple[Callable[..., None], dict[str, Any]]] = {
    ("project", "plain"): (project, {}),
    ("project", "strength"): (project, {"strength": True}),
    ("project_backward", "plain"): (project_backward, {}),
    ("project_backward", "strength"): (project_backward, {"strength": True}),
    ("project_backward", "strength, from z"): (project_backward, {"strength": True, "from_z": True}),
    ("project_backward", "from z, dy"): (project_backward, {"from_z": True, "wanted": "dy"}),
    ("project_backward", "from z, dv added"): (project_backward, {"from_z": True, "wanted": "dv"}),
}


def compile_launches(launch: Callable[[], object], target: str) -> list[Row]:
    """What ``launch`` would run on ``target``, a row for each kernel, in order; nothing is run.

    Raises:
        RuntimeError: the kernels were imported for Triton's interpreter.
    """
    rows: list[Row] = []
    compile_and_launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = compile_and_launch(self, *args, grid=grid, warmup=True, **options)
        rows.append(read_resources(compiled, target))
        return compiled

    with pretend(target):
        JITFunction.run = compile_only
        try:
            launch()
        finally:
            JITFunction.run = compile_and_launch
    if not rows:
        raise RuntimeError("nothing was compiled: were the kernels imported with TRITON_INTERPRET=1?")
    return rows


class PretendedDriver:
    """As much of a driver as compilation asks for."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return self.target  # the key of Triton's cache of compiled kernels

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target][0]


@contextlib.contextmanager
def pretend(target: str) -> Iterator[None]:
    """Have Triton believe that the current device is ``target``."""
    before = driver._active
    driver.set_active(PretendedDriver(target))
    try:
        yield
    finally:
        driver._active = before


def read_resources(compiled: Any, target: str) -> Row:
    """Registers and spilled bytes a thread, shared bytes a program, off the compiled binary.

    On AMD these are vector registers, and what a thread keeps in scratch memory.
    """
    if TARGETS[target][0].backend == "hip":
        assembly = compiled.asm["amdgcn"]
        usage = {name: int(value) for name, value in re.findall(r"^\s*\.(\w+): +(\d+)$", assembly, re.MULTILINE)}
        registers = usage["vgpr_count"]
        spilled = max(usage["private_segment_fixed_size"], 4 * usage["vgpr_spill_count"])
    else:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(tool), "--dump-resource-usage", file.name]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}
        # These kernels use stack and local memory for spills only.
        registers, spilled = usage["REG"], usage["STACK"] + usage["LOCAL"]
    return {
        "kernel": compiled.src.fn.__name__,
        "target": target,
        "num_warps": compiled.metadata.num_warps,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": compiled.metadata.shared,
    }


def problems(rows: list[Row]) -> list[str]:
    """What is wrong, a line each."""
    found = []
    for row in rows:
        name = f"{row['kernel']} ({row['variant']}), {row['target']}, {row['dtype']}, head_dim {row['head_dim']}"
        if row["spilled_bytes"] and row["head_dim"] <= 128:
            found.append(f"{name}: spills {row['spilled_bytes']} bytes")
        if row["shared_bytes"] > (limit := TARGETS[row["target"]][1]):
            found.append(f"{name}: {row['shared_bytes']} bytes of shared memory, of {limit}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--head-dims", nargs="+", type=int, default=list(HEAD_DIMS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()

    rows = []
    line = "{kernel:<26}{variant:<20}{target:<8}{dtype:<10}"
    line += "{head_dim:>8}{registers:>10}{spilled_bytes:>14}{shared_bytes:>13}"
    names = ("kernel", "variant", "target", "dtype", "head_dim", "registers", "spilled_bytes", "shared_bytes")
    print(line.format(**{name: name for name in names}))
    cases = product(arguments.targets, LAUNCHES.items(), arguments.dtypes, arguments.head_dims)
    for target, ((launcher, variant), (launch, options)), dtype, head_dim in cases:

        def run(launch: Any = launch, head_dim: int = head_dim, dtype: str = dtype, options: Any = options) -> None:
            launch(head_dim, getattr(torch, dtype), **options)

        for row in compile_launches(run, target):
            rows.append({"launcher": launcher, "variant": variant, "dtype": dtype, "head_dim": head_dim, **row})
            print(line.format(**rows[-1]), flush=True)
    if arguments.out:
        write_json(arguments.out / f"kernel_resources_triton{triton.__version__}.json", rows)
    found = problems(rows)
    print("\n".join(["", f"{len(rows)} binaries, {len(found)} problems", *found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
