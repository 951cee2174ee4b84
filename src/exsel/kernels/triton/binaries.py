"""What a kernel costs a chip that is not here: registers, spilled bytes and shared memory, off the compiled binary.

Triton compiles for any target without a device. :func:`compile_launches` runs a launcher as a user would, on tensors
of the CPU, and keeps what each of its launches would have run: the arguments, and with them Triton's specialisation on
strides and alignment, are the launcher's own. It needs a process in which the kernels were imported without
``TRITON_INTERPRET``.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

#: The architectures of :data:`exsel.kernels.triton.tuning.SHARED_MEMORY`, as Triton names them.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Binary:
    """One compiled kernel: ``registers`` and ``spilled_bytes`` a thread, ``shared_bytes`` a program.

    On AMD ``registers`` are the vector registers and ``spilled_bytes`` what a thread keeps in scratch memory.
    """

    kernel: str
    target: str
    num_warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_launches(launch: Callable[[], object], target: str) -> list[Binary]:
    """The binaries that ``launch`` would run on ``target``, in order; nothing is run.

    Args:
        launch: calls a launcher on CPU tensors with the configuration of ``target``.
        target: a key of :data:`TARGETS`.

    Raises:
        RuntimeError: the kernels were imported for Triton's interpreter.
    """
    binaries: list[Binary] = []
    compile_and_launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = compile_and_launch(self, *args, grid=grid, warmup=True, **options)
        binaries.append(_read(compiled, target))
        return compiled

    with _pretend(target):
        JITFunction.run = compile_only
        try:
            launch()
        finally:
            JITFunction.run = compile_and_launch
    if not binaries:
        raise RuntimeError("nothing was compiled: were the kernels imported with TRITON_INTERPRET=1?")
    return binaries


class _Driver:
    """As much of a driver as compilation asks for."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return self.target  # the key of Triton's cache of compiled kernels

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]


@contextlib.contextmanager
def _pretend(target: str) -> Iterator[None]:
    """Have Triton believe that the current device is ``target``."""
    before = driver._active
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = before


def _read(compiled: Any, target: str) -> Binary:
    read = _read_amd if TARGETS[target].backend == "hip" else _read_nvidia
    registers, spilled = read(compiled)
    metadata = compiled.metadata
    return Binary(compiled.src.fn.__name__, target, metadata.num_warps, registers, spilled, metadata.shared)


def _read_nvidia(compiled: Any) -> tuple[int, int]:
    """Registers, and the bytes of stack and local memory, which these kernels use for spills only."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _read_amd(compiled: Any) -> tuple[int, int]:
    """Vector registers, and the bytes of scratch."""
    assembly: str = compiled.asm["amdgcn"]
    numbers = {name: int(value) for name, value in re.findall(r"^\s*\.(\w+): +(\d+)$", assembly, re.MULTILINE)}
    return numbers["vgpr_count"], max(numbers["private_segment_fixed_size"], 4 * numbers["vgpr_spill_count"])
