"""The projection's passes in C++: one loop forward and one backward on the CPU, compiled on this machine at first use.

Floor: the bytes of y, v and z (forward), and of dz, y, v, dy and dv (backward), each moved once.

``passes.cpp`` needs a C++17 compiler and nothing else, no headers of PyTorch's, and takes two or three seconds. The
library is kept in the user's cache folder under a name that changes with the source, the compiler and the processor.
Where there is no compiler, :func:`available` is False, :func:`why_not` says why, and :mod:`exsel.kernels.passes`
computes the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

_SOURCE: Final = Path(__file__).with_name("passes.cpp")
_BASE: Final = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=fast")
# The first that the compiler takes: for this processor and on several threads, else without the one or the other.
_FLAGS: Final = (
    (*_BASE, "-march=native", "-fopenmp"),
    (*_BASE, "-march=native", "-fopenmp-simd"),
    (*_BASE, "-fopenmp"),
    (*_BASE, "-fopenmp-simd"),
    _BASE,
)
_COMPILE_SECONDS: Final = 120

_DTYPES: Final = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_VIEWS: Final = 11
# struct Arguments of passes.cpp.
_ARGUMENTS: Final = struct.Struct(f"@9qd{5 * _VIEWS}q")
_NOT_GIVEN: Final = (0, 0, 0, 0, 0)
# A second thread pays from 72 KiB moved on (2 cores of a Xeon, threads awake); waking one costs more.
_BYTES_PER_THREAD: Final = 1 << 17


def available() -> bool:
    """Whether the library is there; the first call compiles it, unless an earlier process has."""
    return _outcome().library is not None


def why_not() -> str:
    """Why :func:`available` is False, in a sentence; empty where it is True."""
    return _outcome().why_not


def project(
    y: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    gate: Tensor | None,
    eps: float,
    out: Tensor,
    along: Tensor | None = None,
) -> None:
    """As :func:`exsel.kernels.passes.project`, on CPU tensors [B, H, T, D]; ``available()`` must be True."""
    views = (y, own_value, strength, gate, along, out, None, None, None, None, None)
    _call(_loaded().exsel_project, y, own_value, eps, views, 3, False)


def project_backward(
    dout: Tensor,
    x: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    gate: Tensor | None,
    eps: float,
    along: Tensor | None,
    dy: Tensor | None,
    dv: Tensor | None,
    dstrength: Tensor | None = None,
    dgate: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> None:
    """As :func:`exsel.kernels.passes.project_backward`, on CPU tensors; ``available()`` must be True."""
    assert along is None or gate is None, "y cannot be told from a gated output"
    views = (x, own_value, strength, gate, along, None, dout, dy, dv, dstrength, dgate)
    _call(_loaded().exsel_project_backward, x, own_value, eps, views, 5, accumulate)


def scale(x: Tensor, tau: Tensor, out: Tensor) -> None:
    """Write τ ⊙ x into ``out``: x and out [B, H, T, D], τ [B, H, T] in float32 (float64 for float64)."""
    views = (x, None, tau, None, None, out, None, None, None, None, None)
    _call(_loaded().exsel_scale, x, x, 0.0, views, 2, False)


def scale_backward(dout: Tensor, x: Tensor, tau: Tensor, dx: Tensor, dtau: Tensor) -> None:
    """Write the gradients of :func:`scale`, τ ⊙ dout and dout·x."""
    views = (x, None, tau, None, None, None, dout, dx, None, dtau, None)
    _call(_loaded().exsel_scale, x, x, 0.0, views, 3, False)


def _call(
    function: ctypes._NamedFuncPointer,
    x: Tensor,
    own_value: Tensor,
    eps: float,
    views: tuple[Tensor | None, ...],
    passes: int,
    accumulate: bool,
) -> None:
    batches, heads, tokens, head_dim = x.shape
    threads = min(torch.get_num_threads(), 1 + passes * x.nbytes // _BYTES_PER_THREAD)
    has_scalars = any(tensor is not None and tensor.ndim == 3 for tensor in views)
    packed: list[int] = []
    for tensor in views:
        if tensor is None:
            packed += _NOT_GIVEN
        else:
            packed.append(tensor.data_ptr())
            packed += tensor.stride()
            if tensor.ndim == 3:
                packed.append(0)
    function(
        _ARGUMENTS.pack(
            _DTYPES[x.dtype],
            batches,
            heads,
            own_value.shape[1],
            tokens,
            head_dim,
            threads,
            has_scalars,
            accumulate,
            eps,
            *packed,
        )
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    library: ctypes.CDLL | None
    why_not: str


class _BuildError(Exception):
    """No library, for a reason that is a sentence."""


class _RefusedError(_BuildError):
    """Not with these flags."""


_lock = threading.Lock()


def _outcome() -> _Outcome:
    with _lock:
        return _build_once()


@functools.cache
def _loaded() -> ctypes.CDLL:
    outcome = _outcome()
    assert outcome.library is not None, outcome.why_not
    return outcome.library


@functools.cache
def _build_once() -> _Outcome:
    try:
        library = _build()
    except _BuildError as error:
        return _Outcome(library=None, why_not=str(error))
    except OSError as error:  # a full disk, no folder for temporary files
        return _Outcome(library=None, why_not=f"the C++ passes cannot be written: {error}")
    for function in (library.exsel_project, library.exsel_project_backward, library.exsel_scale):
        function.argtypes, function.restype = [ctypes.c_char_p], None
    return _Outcome(library=library, why_not="")


def _build() -> ctypes.CDLL:
    if sys.platform == "win32":
        raise _BuildError("the C++ passes are not built on Windows")
    compiler = _find_compiler()
    version = _run([*compiler, "--version"])
    for flags in _FLAGS[:-1]:
        with contextlib.suppress(_RefusedError):
            return _load(compiler, flags, version)
    # What is said of the plainest flags is about the compiler.
    return _load(compiler, _FLAGS[-1], version)


def _find_compiler() -> list[str]:
    """The command that compiles C++: $CXX as everywhere, else the usual names."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise _BuildError(f"CXX names the C++ compiler {chosen[0]!r}, which is not there")
        return chosen
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise _BuildError("no C++ compiler was found (c++, g++ or clang++; CXX can name another)")


def _run(command: list[str]) -> str:
    """What the command prints.

    Raises:
        _BuildError: it failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        raise _BuildError(f"the C++ compiler {command[0]} took more than {_COMPILE_SECONDS} s") from None
    except OSError as error:
        raise _BuildError(f"the C++ compiler {command[0]} does not start: {error.strerror}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line] or lines or [f"exit code {done.returncode}"]
        raise _RefusedError(f"the C++ compiler {command[0]} said: {errors[0]}")
    return done.stdout


def _load(compiler: list[str], flags: tuple[str, ...], version: str) -> ctypes.CDLL:
    """The library compiled with these flags: an earlier one from the cache folder, else a new one."""
    name = f"passes-{_digest(_SOURCE.read_bytes(), compiler, flags, version, _processor())}.so"
    with _folder() as folder:
        library = folder / name
        if _is_mine(library):
            with contextlib.suppress(OSError):  # cut short: made anew
                return ctypes.CDLL(str(library))
        # Under a name of its own first: several processes may be here at once.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / name
            _run([*compiler, *flags, str(_SOURCE), "-o", str(fresh)])
            fresh.replace(library)
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise _RefusedError(f"the compiled library does not load: {error}") from error


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """What -march=native depends on."""
    with contextlib.suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU")
        return repr(sorted({line for line in lines if line.startswith(wanted)}))
    return f"{platform.machine()} {platform.processor()} {platform.platform()}"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """The user's cache folder; where nothing can be kept there, one that goes once the library is loaded."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "exsel"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = _is_mine(folder) and os.access(folder, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        usable = False
    if usable:
        yield folder
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def _is_mine(path: Path) -> bool:
    """Whether nobody else could have put it there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
