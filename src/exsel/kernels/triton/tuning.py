"""Which block sizes a kernel is launched with: those that won on this chip, else the defaults of its architecture.

``configs/defaults.json`` holds the defaults, by kernel, architecture, bytes of an element and head dimension (to the
next power of two); ``configs/CHIP.json``, in the same form without the architecture, what ``exsel bench --tune``
measured on one chip.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

import torch

#: What a configuration is: the kernel's block sizes by name, ``num_warps`` and ``num_stages``.
Config = dict[str, int]

#: From the defaults' architectures to the shared memory that one program may use, in bytes.
SHARED_MEMORY = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}


def padded(head_dim: int) -> int:
    """The power of two that a head dimension is padded to: at least 16, the least that ``tl.dot`` takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose_config(kernel: str, head_dim: int, dtype: torch.dtype, device: torch.device) -> Config:
    """The configuration for ``kernel`` at this head dimension and dtype on this device.

    Raises:
        KeyError: a kernel or a head dimension that the defaults do not have.
    """
    size, dim = str(dtype.itemsize), str(padded(head_dim))
    tuned = _load(_chip(device)).get(kernel, {}).get(size, {}).get(dim)
    return tuned or default_config(kernel, head_dim, dtype, architecture(device))


def default_config(kernel: str, head_dim: int, dtype: torch.dtype, target: str) -> Config:
    """The default for an architecture of :data:`SHARED_MEMORY`."""
    config: Config = _load("defaults")[kernel][target][str(dtype.itemsize)][str(padded(head_dim))]
    return config


@functools.cache
def architecture(device: torch.device) -> str:
    """The architecture of :data:`SHARED_MEMORY` whose defaults suit a device."""
    if device.type != "cuda":
        return "sm_90"  # the interpreter, which has no limits
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) in ((8, 0), (9, 0), (10, 0), (10, 3)):
        return f"sm_{major}0"
    return "sm_86"


@functools.cache
def _chip(device: torch.device) -> str:
    """The device's name as a file name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def _load(name: str) -> dict[str, Any]:
    file = resources.files("exsel.kernels.triton").joinpath("configs", f"{name}.json")
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return loaded
