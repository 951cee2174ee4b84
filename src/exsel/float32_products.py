"""Products of float32 matrices on a CPU: by oneDNN where it is as exact as PyTorch's default; faster on AMD's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SIZE = 256


@contextmanager
def fast_products(device: str) -> Iterator[None]:
    """As long as the block runs, let PyTorch multiply float32 matrices by oneDNN, on a CPU where it is as exact as MKL.

    MKL, PyTorch's default, does not use the widest instructions of AMD's processors. PyTorch calls oneDNN instead where
    ``torch.set_float32_matmul_precision("medium")`` allows it to round to bfloat16. oneDNN does that on processors with
    instructions for such matrices (Intel's AMX): there nothing is changed, nor where the setting is no longer its
    default.

    Args:
        device: of the block's tensors; on another than ``"cpu"`` nothing is changed.
    """
    if device != "cpu" or _precision() != "highest" or not _is_exact():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        if _precision() == "medium":  # not what the block itself has chosen
            torch.set_float32_matmul_precision("highest")


def _precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set for each backend apart, which this question does not know
        return ""


@functools.cache
def _is_exact() -> bool:
    """Whether the error of products is that of float32 sums, here 2e-7 of them, and not of bfloat16 factors, 2e-3."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, _SIZE, _SIZE, generator=generator)
    exact = first.double() @ second.double()
    torch.set_float32_matmul_precision("medium")
    try:
        error = (first @ second - exact).norm() / exact.norm()
    finally:
        torch.set_float32_matmul_precision("highest")
    return bool(error < _SIZE * torch.finfo(torch.float32).eps)
