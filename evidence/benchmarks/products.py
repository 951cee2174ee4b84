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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evidence.benchmarks.cpu_rows import keep_rows
from exsel.bench.cases import SHAPES, Case
from exsel.bench.measuring import Contender, CpuClock, Work, measure
from exsel.bench.model_contenders import STEPS, context_length, step_contenders
from exsel.cli.display import activity
from exsel.float32_products import fast_products

SUBJECT = "float32 products"
_PATH = Path(__file__).parent / "results" / "products_cpu.json"
_WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "PyTorch's default": nullcontext,
    "exsel train": functools.partial(fast_products, "cpu"),
}


def contenders(case: Case) -> list[Contender]:
    """A step of the model with both mechanisms as :func:`step_contenders` makes it, in each way."""
    (step,) = (each for each in step_contenders(case, ["compiled"]) if each.name == "exclusive+selective")
    floor = (step.group, next(iter(_WAYS)))

    def work(name: str) -> Work:
        made = step.prepare()

        def call() -> Tensor:
            with _WAYS[name]():
                return made.forward()

        return replace(made, forward=call)

    return [
        Contender(name=name, group=step.group, floor=floor, prepare=functools.partial(work, name)) for name in _WAYS
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,25m", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, help="by the time they take, from 5 to 20")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with activity() as say:
        for size in arguments.sizes.split(","):
            say(f"a step of {size}")
            tokens, device = context_length(size), torch.device("cpu")
            batch = STEPS["cpu"][1] // tokens
            case = Case(shape=SHAPES[size], tokens=tokens, batch=batch, device=device, dtype=torch.float32)
            described = {"subject": SUBJECT, "shape": size, "tokens": tokens, "batch": batch}
            measured = measure(contenders(case), clock=CpuClock(), device=device, rounds=arguments.rounds, say=say)
            rows += [{**described, **row} for row in measured]
    keep_rows(_PATH, "evidence.benchmarks.products", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
