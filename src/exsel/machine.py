"""Where a result was made: the machine, the versions, the revision."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from exsel.errors import ExselError, require
from exsel.version import __version__

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "triton")


def resolve_device(device: str) -> str:
    """The best available device for ``"auto"``; any other device is checked and returned."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if device not in available:
        hint = "; CUDA_VISIBLE_DEVICES=1 makes the second GPU the only one" if device.startswith("cuda:") else ""
        raise ExselError(f"--device {device}: choose auto, cpu, cuda or mps{hint}")
    if not available[device]:
        raise ExselError(f"--device {device}: PyTorch {torch.__version__} finds no such device here; use --device cpu")
    return device


def can_compile() -> bool:
    """Whether ``torch.compile`` has the C++ compiler that it needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name)


def describe_machine(device: str) -> dict[str, Any]:
    """The machine and the versions, for the record."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    is_cuda = device == "cuda"
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": require("psutil", "train").virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if is_cuda else device,
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "python": platform.python_version(),
        "exsel": __version__,
        **versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # only Linux has this file
    return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit of the source tree that exsel runs from, with ``+`` where files differ; None if it is installed."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
