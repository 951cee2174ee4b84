"""What exact float32 products by oneDNN save in a compiled training step, in one process and in turn, on the CPU.

    python -m evidence.benchmarks.products [--sizes tiny,25m] [--rounds N]

A step of ``exsel train`` (:func:`exsel.float32_products.fast_products`) beside the same step with PyTorch's default.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evidence.benchmarks.cpu_rows import keep_rows
from exsel.bench.measuring import Contender, CpuClock, Work, measure
from exsel.bench.model_contenders import STEPS, VOCABULARY, build, context_length
from exsel.cli.display import activity
from exsel.float32_products import fast_products
from exsel.training.training_step import training_step

SUBJECT = "float32 products"
_PATH = Path(__file__).parent / "results" / "products_cpu.json"
_WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "PyTorch's default": nullcontext,
    "exsel train": functools.partial(fast_products, "cpu"),
}


def contenders(size: str) -> tuple[list[Contender], tuple[int, int]]:
    """Steps of the model with both mechanisms, and their batch and tokens."""
    tokens = context_length(size)
    batch = STEPS["cpu"][1] // tokens
    ids = torch.randint(3, VOCABULARY, (batch, tokens))
    default = next(iter(_WAYS))

    def work(name: str) -> Work:
        model = build("exclusive+selective", size, torch.device("cpu"))
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> Tensor:
            with _WAYS[name]():
                return training_step(model(input_ids=ids, labels=ids).loss, model, optimizer)

        return Work(forward=step, name="step")

    made = [
        Contender(name=name, group="compiled", floor=("compiled", default), prepare=functools.partial(work, name))
        for name in _WAYS
    ]
    return made, (batch, tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,25m", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, help="by the time they take, from 5 to 20")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with activity() as say:
        for size in arguments.sizes.split(","):
            say(f"a step of {size}")
            made, (batch, tokens) = contenders(size)
            described = {"subject": SUBJECT, "shape": size, "tokens": tokens, "batch": batch}
            clock, device = CpuClock(), torch.device("cpu")
            measured = measure(made, clock=clock, device=device, rounds=arguments.rounds, say=say)
            rows += [{**described, **row} for row in measured]
    keep_rows(_PATH, "evidence.benchmarks.products", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
