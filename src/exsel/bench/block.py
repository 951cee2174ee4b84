"""One transformer block: forward, backward and both, by variant, eager and compiled."""

from __future__ import annotations

from typing import Any

import torch

from exsel.bench.cases import Case
from exsel.bench.measuring import Contender, Refused
from exsel.bench.timing import Work
from exsel.bench.variants import VARIANTS, build
from exsel.machine import can_compile
from exsel.models import SIZES
from exsel.variants import BASELINE

GROUPS = ("eager", "compiled")


def contenders(case: Case) -> list[Contender]:
    """The variants in each way, the baseline in front; each is divided by the baseline of its own way."""
    size = case.shape.name
    hidden = torch.randn(
        case.batch, case.tokens, SIZES[size]["hidden_size"], device=case.device, dtype=case.dtype, requires_grad=True
    )
    gradient = torch.randn_like(hidden)
    position = torch.arange(case.tokens, device=case.device).unsqueeze(0)

    def work(variant: str, group: str) -> Work:
        model = build(variant, size, layers=1).to(case.device, case.dtype)
        layer = model.model.layers[0]
        arguments: dict[str, Any] = {
            "position_embeddings": model.model.rotary_emb(hidden, position_ids=position),
            "position_ids": position,
            "sequence_position": position + 1,
            "attention_mask": None,
        }
        if group == "compiled":
            check_compiler()
            layer.compile(dynamic=False)
        return Work(forward=lambda: layer(hidden, **arguments), inputs=(hidden, *layer.parameters()), gradient=gradient)

    return [
        Contender(name=variant, group=group, floor=(group, BASELINE), prepare=lambda v=variant, g=group: work(v, g))  # type: ignore[misc]
        for group in GROUPS
        for variant in VARIANTS
    ]


def check_compiler() -> None:
    """Check that ``torch.compile`` can work.

    Raises:
        Refused: it cannot.
    """
    if not can_compile():
        raise Refused("torch.compile needs a C++ compiler (g++ or clang++), and there is none")
