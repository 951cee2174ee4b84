"""What is measured: shapes by name, lengths, and how many sequences make a case."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exsel.errors import ExselError
from exsel.model_sizes import SIZES

#: The ways in which a block and a step are measured.
GROUPS = ("eager", "compiled")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """The heads of an attention layer."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


#: The named sizes of our model, and the grouped heads of Llama 3 8B.
SHAPES = {
    name: Shape(name, size["num_attention_heads"], size["num_attention_heads"], size["head_dim"])
    for name, size in SIZES.items()
} | {"llama": Shape("llama", 32, 8, 128)}

#: 2.7b has the heads of 1.4b.
DEFAULT_SHAPES = ("124m", "0.7b", "1.4b", "llama")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of a table: every contender gets the same tensors."""

    shape: Shape
    tokens: int
    batch: int
    device: torch.device
    dtype: torch.dtype

    def heads(self, count: int, tokens: int | None = None) -> Tensor:
        """Standard normal ``[B, count, T, D]``, in memory ``[B, T, count, D]`` as a projection writes it."""
        size = (self.batch, self.tokens if tokens is None else tokens, count, self.shape.head_dim)
        return torch.randn(size, device=self.device, dtype=self.dtype).transpose(1, 2)

    def __str__(self) -> str:
        return f"{self.shape.name}, {self.batch} × {self.tokens} tokens"


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Names of :data:`SHAPES`, or heads × key/value heads × head dimension as ``24x8x128``, with commas between."""
    shapes = []
    for name in map(str.strip, text.split(",")):
        if name not in SHAPES and not re.fullmatch(r"\d+x\d+x\d+", name):
            raise ExselError(
                f"--shapes: no shape {name!r}: choose from {', '.join(SHAPES)}, or give heads x key/value heads x head "
                "dimension, such as 24x8x128"
            )
        shape = SHAPES.get(name) or Shape(name, *map(int, name.split("x")))
        if not (shape.num_heads and shape.num_kv_heads and shape.head_dim) or shape.num_heads % shape.num_kv_heads:
            raise ExselError(
                f"--shapes {name}: the heads must be a multiple of the key/value heads, and none of them 0"
            )
        shapes.append(shape)
    return tuple(shapes)


def batch_of(tokens: int, tokens_in_all: int) -> int:
    """So many sequences that their tokens are constant, as in the paper; at least one."""
    return max(1, tokens_in_all // tokens)


def check_names(names: Collection[str], known: Collection[str], what: str) -> None:
    """Check that all are known."""
    for name in names:
        if name not in known:
            raise ExselError(f"{what}: no {name!r}: choose from {', '.join(known)}")


def check_sizes(names: Collection[str], flag: str) -> None:
    """Check that each is the name of a size of our model."""
    for name in names:
        if name not in SIZES:
            raise ExselError(f"{flag} {name}: blocks and models come in the sizes {', '.join(SIZES)}")


def check_memory(cases: Sequence[Case]) -> None:
    """Check that every case fits: inputs, output, their gradients and as much again for what eager forms keep."""
    for case in cases:
        width = case.shape.num_heads + case.shape.num_kv_heads
        needed = 8 * case.batch * case.tokens * width * case.shape.head_dim * case.dtype.itemsize
        check_bytes(needed, case.device, str(case))


def check_bytes(needed: int, device: torch.device, what: str) -> None:
    """Check that so much memory is free."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    if needed > free:
        raise ExselError(
            f"{what} needs about {needed / 2**30:,.1f} GiB of memory and {free / 2**30:,.1f} GiB are free: choose "
            "smaller ones with --shapes, --seq-lens or --model"
        )
