"""What the trainings of ``titan_runs.py`` train, for torchtitan and for ``ExselForCausalLM``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exsel import SelectiveConfig

#: Context parallelism divides FlexAttention's blocks of 128 tokens.
BATCH, SEQ_LEN, STEPS, WEIGHT_DECAY = 2, 256, 5, 0.1


@dataclass(frozen=True)
class Case:
    model: str
    mechanisms: dict[str, Any]
    rate: float = 1e-3
    mechanism_rate: float = 1e-2


CASES = {
    "llama": Case("llama3", {"exclusive": "learned", "selective": SelectiveConfig(key=True)}),
    "linear": Case("qwen3", {"selective": SelectiveConfig(token="linear", position_per_head=False)}),
    "qwen": Case(
        "qwen3", {"exclusive": True, "selective": SelectiveConfig(token="mlp", per_head=False, position_per_head=False)}
    ),
}


def batches(vocab_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, labels and positions ``[B, T]`` of each step: two documents in a sequence."""
    generator = torch.Generator().manual_seed(1)
    positions = torch.cat((torch.arange(150), torch.arange(SEQ_LEN - 150))).expand(BATCH, -1).clone()
    for _ in range(STEPS):
        ids = torch.randint(vocab_size, (BATCH, SEQ_LEN + 1), generator=generator)
        yield ids[:, :-1].clone(), ids[:, 1:].clone(), positions
