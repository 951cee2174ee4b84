"""What the mechanisms cost a training step: ratios to the plain model, measured in turn in one process.

    python benchmarks/training_step.py [--eager] [--rounds 40] [--out benchmarks/results/training_step_cpu.json]

Contenders are the four variants, and beside ours the forms that people write by hand: two lines of ``normalize``,
multiply and subtract for exclusive attention, and the temperatures as the plain chain of operators. Each round runs
one step of every contender, so that a slow moment of the machine falls on all of them; the ratio is taken within a
round, and its median and quartiles are over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exsel import ExclusiveConfig, ExselConfig, ExselForCausalLM, SelectiveConfig
from exsel.files import write_json
from exsel.models import SIZES
from exsel.models.modeling import ExselAttention
from exsel.training.environment import describe_machine, git_revision


class NaiveExclusive(nn.Module):
    """The two published lines."""

    def forward(self, y: Tensor, own_value: Tensor) -> Tensor:
        own_value = own_value.repeat_interleave(y.shape[1] // own_value.shape[1], dim=1)
        direction = F.normalize(own_value, dim=-1)
        return y - (y * direction).sum(dim=-1, keepdim=True) * direction


class NaiveTemperature(nn.Module):
    """The definition, operator by operator."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.position_logit = nn.Parameter(torch.full((num_heads,), -7.4))

    def forward(self, projection: Tensor, position: Tensor, **_: Tensor | None) -> Tensor:
        token = torch.tanh(torch.einsum("bhtd,hd->bht", F.gelu(projection), self.weight))
        growth = torch.sigmoid(self.position_logit)[None, :, None] * torch.log(position.float())[:, None, :]
        return token + 1 + growth


def build(variant: str, size: str) -> ExselForCausalLM:
    config = ExselConfig(
        vocab_size=259,
        **SIZES[size],
        exclusive=ExclusiveConfig() if "exclusive" in variant else None,
        selective=SelectiveConfig() if "selective" in variant else None,
    )
    torch.manual_seed(0)
    model = ExselForCausalLM(config)
    if variant.startswith("naive"):
        for layer in model.model.layers:
            attention = layer.get_submodule("self_attn")
            assert isinstance(attention, ExselAttention)
            if "exclusive" in variant:
                attention.exclusive = NaiveExclusive()  # type: ignore[assignment]
            for name in attention.temperatures:
                attention.temperatures[name] = NaiveTemperature(config.num_attention_heads, attention.head_dim)
    return model


def make_step(model: ExselForCausalLM, ids: Tensor, *, compiled: bool) -> Callable[[], None]:
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument(
        "--variants",
        default="baseline,exclusive,selective,exclusive+selective,"
        "naive exclusive,naive selective,naive exclusive+selective",
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    ids = torch.randint(3, 259, (arguments.batch_size, SIZES[arguments.model]["max_position_embeddings"]))
    steps = {}
    for variant in arguments.variants.split(","):
        torch._dynamo.config.recompile_limit = 64
        steps[variant] = make_step(build(variant, arguments.model), ids, compiled=not arguments.eager)
        for _ in range(3):
            steps[variant]()
        print(f"ready: {variant}", flush=True)
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(arguments.rounds):
        for variant, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[variant].append(time.perf_counter() - start)
    base = seconds["baseline"]
    rows = []
    for variant, times in seconds.items():
        ratios = [own / other for own, other in zip(times, base, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "variant": variant,
                "ms_median": statistics.median(times) * 1e3,
                "ratio_median": quartiles[1],
                "ratio_quartiles": [quartiles[0], quartiles[2]],
            }
        )
        spread = f"[{quartiles[0]:.3f}, {quartiles[2]:.3f}]"
        print(f"{variant:28} {statistics.median(times) * 1e3:7.1f} ms  {quartiles[1]:.3f}× {spread}")
    if arguments.out is not None:
        write_json(
            arguments.out,
            {
                "benchmark": "training_step",
                "model": arguments.model,
                "tokens_per_step": ids.numel(),
                "compiled": not arguments.eager,
                "rounds": arguments.rounds,
                "rows": rows,
                "machine": describe_machine("cpu"),
                "git_revision": git_revision(),
            },
        )


if __name__ == "__main__":
    main()
