"""The projection's passes in C++: one loop forward and one backward on the CPU, compiled on this machine at first use.

Floor: the bytes of y, v and z (forward), and of dz, y, v, dy and dv (backward), each moved once.

``passes.cpp`` needs a C++17 compiler and nothing else, no headers of PyTorch's, and takes two or three seconds. The
library is kept in the user's cache folder, under a name that holds a hash of what it was made from (the source, the
compiler, the processor) and a hash of the library itself: a damaged one would kill the process, and is made anew.
Where there is no library, :func:`available` is False, :func:`why_not` says why, and :mod:`exsel.kernels.passes`
computes the same. The logger ``exsel`` says when a compiler runs (info) and when it fails (warning).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shlex
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from exsel.config import PositionForm
from exsel.files import cache_folder
from exsel.reference import accumulation_dtype

_SOURCE: Final = Path(__file__).with_name("passes.cpp")
_BASE: Final = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=fast")
# The first flags that the compiler accepts are used: preferably for this processor, and with several threads.
_FLAGS: Final = (
    (*_BASE, "-march=native", "-fopenmp"),
    (*_BASE, "-march=native", "-fopenmp-simd"),
    (*_BASE, "-fopenmp"),
    (*_BASE, "-fopenmp-simd"),
    _BASE,
)
_ANSWER_SECONDS: Final = 20  # --version: a compiler that hangs does so here
_COMPILE_SECONDS: Final = 120
_SYMBOLS: Final = ("exsel_project", "exsel_project_backward", "exsel_scale", "exsel_scale_by_temperature")
# Libraries that nothing has loaded for so long, and scratch folders so old that their builds must be dead, are removed.
_UNUSED_SECONDS: Final = 30 * 24 * 3600
_ABANDONED_SECONDS: Final = 3600

#: The dtypes that the passes know, by their number in passes.cpp.
DTYPES: Final = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# A struct of passes.cpp: nine numbers, eps, and for each view a place for its pointer and four strides.
_SIZES: Final = "@9qd"
_POINTERS: Final = {number: struct.Struct(f"@{number}q") for number in (5, 6, 9)}
# A second thread pays from 72 KiB moved on (2 cores of a Xeon, threads awake); waking one costs more.
_BYTES_PER_THREAD: Final = 1 << 17

#: A tensor's strides.
_Strides = tuple[int, ...]

_logger = logging.getLogger("exsel")
_lock = threading.Lock()
_wanted = True
_found: _Outcome | None = None


def use_cpp(wanted: bool) -> None:
    """Whether the CPU's passes run in C++, compiled on this machine at first use, or as PyTorch's operators.

    Holds for this process. ``False`` before anything is computed: no compiler runs.
    """
    global _wanted
    _wanted = bool(wanted)


@contextlib.contextmanager
def without() -> Iterator[None]:
    """:func:`use_cpp` of ``False`` as long as the block runs."""
    before = _wanted
    use_cpp(False)
    try:
        yield
    finally:
        use_cpp(before)


def available() -> bool:
    """Whether the library is there and wanted; the first call compiles it, unless an earlier process has."""
    return _wanted and (_found or _outcome()).library is not None


def why_not() -> str:
    """Why :func:`available` is False, in a sentence; empty where it is True."""
    return _outcome().why_not if _wanted else "exsel.use_cpp(False) says so"


def in_words() -> str:
    """What the passes run as, as far as it is known already: nothing is compiled or loaded for the answer."""
    if _wanted and _found is None:
        return "one loop in C++, which the first call compiles or finds compiled"
    return "one loop in C++" if available() else f"several PyTorch operators, since {why_not()}"


def project(
    y: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    eps: float,
    out: Tensor,
    along: Tensor | None = None,
) -> None:
    """As :func:`exsel.kernels.passes.project`, on CPU tensors [B, H, T, D]; ``available()`` must be True."""
    if strength is None and along is None and project_one(y, own_value, eps, out, tokens_first=False):
        return
    has_scalars = strength is not None or along is not None
    tensors = (y, own_value, strength, along, out)
    strides, kv_heads = tuple(map(_strides, tensors)), own_value.shape[1]
    layout = _layout(y.dtype, y.shape, kv_heads, 3, torch.get_num_threads(), has_scalars, False, eps, strides)
    _library().exsel_project(layout, _pointers(*tensors))


def project_one(y: Tensor, own_value: Tensor, eps: float, out: Tensor, tokens_first: bool) -> bool:
    """:func:`project` with strength 1; False, and nothing is computed: no library, or tensors that do not fit.

    ``tokens_first``: y and out are [B, T, H, D].
    """
    library = _loaded()
    if library is None:
        return False
    kinds = (y.shape, y.stride(), y.dtype, own_value.shape, own_value.stride(), own_value.dtype, out.stride())
    layout = _projection_layout(*kinds, eps, tokens_first, torch.get_num_threads())
    if layout is None:
        return False
    library.exsel_project(layout, _POINTERS[5].pack(y.data_ptr(), own_value.data_ptr(), 0, 0, out.data_ptr()))
    return True


@functools.lru_cache(maxsize=256)
def _projection_layout(
    shape: tuple[int, ...],
    strides: _Strides,
    dtype: torch.dtype,
    own_shape: tuple[int, ...],
    own_strides: _Strides,
    own_dtype: torch.dtype,
    out: _Strides,
    eps: float,
    tokens_first: bool,
    num_threads: int,
) -> bytes | None:
    """Struct Arguments of passes.cpp for tensors of these shapes, strides and dtypes; None: they do not fit."""
    if len(shape) != 4 or len(own_shape) != 4 or dtype != own_dtype or dtype not in DTYPES or 0 in shape:
        return None
    if tokens_first:
        shape, strides, out = ((x[0], x[2], x[1], x[3]) for x in (shape, strides, out))
    kv_heads = own_shape[1]
    if own_shape != (shape[0], kv_heads, *shape[2:]) or not kv_heads or shape[1] % kv_heads:
        return None
    return _layout(dtype, shape, kv_heads, 3, num_threads, False, False, eps, (strides, own_strides, (), (), out))


def project_backward(
    dz: Tensor,
    x: Tensor,
    own_value: Tensor,
    strength: Tensor | None,
    eps: float,
    along: Tensor | None,
    dy: Tensor | None,
    dv: Tensor | None,
    dstrength: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> None:
    """As :func:`exsel.kernels.passes.project_backward`, on CPU tensors; ``available()`` must be True."""
    has_scalars = not (strength is None and along is None and dstrength is None)
    tensors = (x, own_value, strength, along, None, dz, dy, dv, dstrength)
    strides, kv_heads = tuple(map(_strides, tensors)), own_value.shape[1]
    layout = _layout(x.dtype, x.shape, kv_heads, 5, torch.get_num_threads(), has_scalars, accumulate, eps, strides)
    _library().exsel_project_backward(layout, _pointers(*tensors))


def scale(x: Tensor, tau: Tensor, out: Tensor) -> None:
    """Write τ ⊙ x into ``out``: x and out [B, H, T, D], τ [B, H, T] in float32 (float64 for float64)."""
    _scale(x, (x, None, tau, None, out, None, None, None, None), 2)


def scale_backward(dout: Tensor, x: Tensor, tau: Tensor, dx: Tensor, dtau: Tensor) -> None:
    """Write the gradients of :func:`scale`, τ ⊙ dout and dout·x."""
    _scale(x, (x, None, tau, None, None, dout, dx, None, dtau), 3)


def _scale(x: Tensor, tensors: tuple[Tensor | None, ...], passes: int) -> None:
    strides = tuple(map(_strides, tensors))
    layout = _layout(x.dtype, x.shape, x.shape[1], passes, torch.get_num_threads(), True, False, 0.0, strides)
    _library().exsel_scale(layout, _pointers(*tensors))


def scale_by_temperature(
    x: Tensor,
    features: Tensor,
    weight: Tensor,
    position: Tensor | None,
    position_logit: Tensor | None,
    position_form: PositionForm,
) -> Tensor | None:
    """τ ⊙ x, τ being :func:`exsel.reference.inverse_temperature`; ``None``: no library, or tensors that do not fit.

    Args:
        x: [B, H, T, D].
        features: [B, T, H, F], of x's dtype.
        weight: [H or 1, F] in float32 (float64 for float64).
        position: int64 [B or 1, T]; with ``position_logit`` only.
        position_logit: [H or 1], of weight's dtype; None: without its term.
        position_form: the function of position_logit that log n is multiplied by.
    """
    library = _loaded()
    if library is None:
        return None
    own = (x.shape, x.stride(), x.dtype, features.shape, features.stride(), features.dtype)
    learned = (weight.shape, weight.stride(), weight.dtype)
    out = torch.empty_like(x)
    places: tuple[Any, ...] = ()
    position_pointer = logit_pointer = 0
    if position is not None and position_logit is not None:
        places = (position.shape, position.stride(), position.dtype)
        places += (position_logit.shape, position_logit.stride(), position_logit.dtype)
        position_pointer, logit_pointer = position.data_ptr(), position_logit.data_ptr()
    layout = _temperature_layout(own, learned, places, out.stride(), position_form, torch.get_num_threads())
    if layout is None:
        return None
    library.exsel_scale_by_temperature(
        layout,
        _POINTERS[6].pack(
            x.data_ptr(), features.data_ptr(), weight.data_ptr(), logit_pointer, position_pointer, out.data_ptr()
        ),
    )
    return out


@functools.lru_cache(maxsize=256)
def _temperature_layout(
    own: tuple[Any, ...],
    learned: tuple[Any, ...],
    places: tuple[Any, ...],
    out: _Strides,
    position_form: PositionForm,
    num_threads: int,
) -> bytes | None:
    """Struct Temperature of passes.cpp for tensors of these shapes, strides and dtypes; None: they do not fit."""
    (shape, x, dtype, features_shape, features, features_dtype), (weight_shape, weight, weight_dtype) = own, learned
    wide = accumulation_dtype(dtype)
    if dtype not in DTYPES or dtype != features_dtype or weight_dtype != wide or len(shape) != 4 or 0 in shape:
        return None
    (batches, heads, tokens, _), (*rest, num_features) = shape, features_shape
    if (
        rest != [batches, tokens, heads]
        or not num_features
        or weight_shape not in ((1, num_features), (heads, num_features))
    ):
        return None
    logit: _Strides = ()
    position: _Strides = ()
    if places:
        position_shape, position_stride, position_dtype, logit_shape, logit_stride, logit_dtype = places
        if position_dtype != torch.int64 or position_shape not in ((1, tokens), (batches, tokens)):
            return None
        if logit_dtype != wide or logit_shape not in ((1,), (heads,)):
            return None
        position = (position_stride[0] if position_shape[0] > 1 else 0, 0, position_stride[1])
        logit = (0, logit_stride[0] if logit_shape[0] > 1 else 0, 0)
    by_batch, by_token, by_head, by_feature = features
    by_weight_head = weight[0] if weight_shape[0] > 1 else 0
    views = (x, (by_batch, by_head, by_token, by_feature), (0, by_weight_head, 0, weight[1]), logit, position, out)
    # GELU takes as long as moving a few more tensors.
    packed = _layout(dtype, shape, heads, 8, num_threads, True, False, 0.0, views)
    return packed + struct.pack("@2q", num_features, position_form != "sigmoid")


def _strides(x: Tensor | None) -> _Strides:
    """Empty: not given."""
    return () if x is None else x.stride()


def _pointers(*tensors: Tensor | None) -> bytes:
    return _POINTERS[len(tensors)].pack(*[0 if x is None else x.data_ptr() for x in tensors])


@functools.lru_cache(maxsize=1024)
def _layout(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kv_heads: int,
    passes: int,
    num_threads: int,
    has_scalars: bool,
    accumulate: bool,
    eps: float,
    strides: tuple[_Strides, ...],
) -> bytes:
    """A struct of passes.cpp, with no pointers in it yet.

    Args:
        dtype, shape: of the first tensor, [B, H, T, D].
        kv_heads: how many heads the own values have.
        passes: how many tensors of the first one's size are moved.
        num_threads: at most so many are used: one for each :data:`_BYTES_PER_THREAD` that is moved.
        has_scalars, accumulate, eps: as in passes.cpp.
        strides: of each tensor [B, H, T, D] or [B, H, T]; what is left out at their end is 0.
    """
    batches, heads, tokens, head_dim = shape
    threads = min(num_threads, 1 + passes * math.prod(shape) * dtype.itemsize // _BYTES_PER_THREAD)
    views: list[int] = []
    for given in strides:
        views += (0, *given, 0, 0, 0, 0)[:5]
    sizes = (DTYPES[dtype], batches, heads, kv_heads, tokens, head_dim, threads, has_scalars, accumulate)
    return struct.pack(f"{_SIZES}{len(views)}q", *sizes, eps, *views)


def _loaded() -> ctypes.CDLL | None:
    """The library, where it is wanted and can be had."""
    return (_found or _outcome()).library if _wanted else None


def _library() -> ctypes.CDLL:
    library = (_found or _outcome()).library
    assert library is not None, why_not()
    return library


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    library: ctypes.CDLL | None
    why_not: str


class _BuildError(Exception):
    """No library, for a reason that is a sentence."""


class _RefusedError(_BuildError):
    """Not with these flags."""


def _outcome() -> _Outcome:
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _find()
    return _found


def _find() -> _Outcome:
    """The library of an earlier process, or a new one, or why there is none."""
    try:
        compiler = _find_compiler()
    except _BuildError as error:
        _logger.info("%s: the CPU's passes run as several PyTorch operators, which takes longer", error)
        return _Outcome(library=None, why_not=str(error))
    try:
        return _Outcome(library=_build(compiler), why_not="")
    except _BuildError as error:
        reason = str(error)
    except OSError as error:  # a full disk, no folder for temporary files
        reason = f"the C++ passes cannot be built: {error}"
    _logger.warning("%s. The CPU's passes run as several PyTorch operators, which takes longer", reason)
    return _Outcome(library=None, why_not=reason)


def _find_compiler() -> list[str]:
    """The command that compiles C++: $CXX as everywhere, else the usual names.

    Raises:
        _BuildError: there is none.
    """
    if sys.platform == "win32":
        raise _BuildError("the C++ passes are not built on Windows")
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise _BuildError(f"CXX={os.environ['CXX']!r} cannot be read: {error}") from None
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise _BuildError(f"CXX names the C++ compiler {chosen[0]!r}, which is not there")
        return chosen
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise _BuildError("no C++ compiler was found (c++, g++ or clang++; CXX can name another)")


def _build(compiler: list[str]) -> ctypes.CDLL:
    version = _run([*compiler, "--version"], _ANSWER_SECONDS)
    for flags in _FLAGS[:-1]:
        with contextlib.suppress(_RefusedError):
            return _load(compiler, flags, version)
    # The error for the plainest flags is about the compiler, not about a flag.
    return _load(compiler, _FLAGS[-1], version)


def _run(command: list[str], seconds: float) -> str:
    """What the command prints.

    Raises:
        _BuildError: it failed, or was not done in time; then it and all that it started are stopped.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _BuildError(f"the C++ compiler {command[0]} does not start: {error.strerror}") from error
    with process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _BuildError(f"the C++ compiler {command[0]} took more than {seconds} s") from None
            raise
    if process.returncode:
        lines = [line.strip() for line in (errors or output).splitlines() if line.strip()]
        told = [line for line in lines if "error" in line] or lines or [f"exit code {process.returncode}"]
        raise _RefusedError(f"the C++ compiler {command[0]} said: {told[0]}")
    return output


def _load(compiler: list[str], flags: tuple[str, ...], version: str) -> ctypes.CDLL:
    """The library compiled with these flags: an earlier one from the cache folder, else a new one."""
    name = f"passes-{_digest(_SOURCE.read_bytes(), compiler, flags, version, _processor())}"
    cache = cache_folder()
    if cache is not None and not _is_mine(cache):
        cache = None
    if cache is not None and (library := _open_kept(cache, name)) is not None:
        return library
    with _folder_to_write(cache) as folder:
        _logger.info(
            "compiling the CPU's passes with %s, once, into %s (exsel.use_cpp(False) does without)",
            shlex.join(compiler),
            folder,
        )
        # Under a name of its own first: several processes may be here at once.
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
            fresh = Path(scratch) / "passes.so"
            _run([*compiler, *flags, str(_SOURCE), "-o", str(fresh)], _COMPILE_SECONDS)
            with fresh.open("rb+") as file:
                content = file.read()
                os.fsync(file.fileno())
            library_path = folder / f"{name}-{_digest(content)}.so"
            fresh.replace(library_path)
        library = _open(library_path)
        _clear(folder)
        return library


def _open_kept(folder: Path, name: str) -> ctypes.CDLL | None:
    """The library that a process before this one has made; None, and gone, if it is damaged."""
    for path in folder.glob(f"{name}-*.so"):
        if not _is_mine(path):
            continue
        with contextlib.suppress(_RefusedError, OSError):
            if path.stem == f"{name}-{_digest(path.read_bytes())}":
                library = _open(path)
                with contextlib.suppress(OSError):  # a folder for reading alone
                    os.utime(path)
                return library
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        for name in _SYMBOLS:
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_char_p], None
    except (OSError, AttributeError) as error:
        raise _RefusedError(f"the compiled library does not load: {error}") from error
    return library


def _clear(folder: Path) -> None:
    """Remove libraries that have not been used for long, and the folders of builds that were killed."""
    now = time.time()
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            age = now - path.stat().st_mtime
            if path.name.startswith("build-") and age > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("passes-") and age > _UNUSED_SECONDS:
                path.unlink()


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
def _folder_to_write(cache: Path | None) -> Iterator[Path]:
    """The cache folder; where nothing can be kept there, one that goes once the library is loaded."""
    if cache is not None and os.access(cache, os.W_OK | os.X_OK):
        yield cache
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
