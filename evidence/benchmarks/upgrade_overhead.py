"""What an upgraded transformers model costs beside the original, in one process and in turn, on the CPU.

    python -m evidence.benchmarks.upgrade_overhead [--sizes tiny,135m] [--ways eager,compiled] [--batches 1,8]
        [--rounds N] [--part NAME]

Generation: a call is 8 steps of one token on a static cache of 256 tokens, eager and compiled. Training: forward,
backward, clipping and AdamW on 8 × 256 tokens (135m: 2 × 256), compiled. All models of a case share one set of
weights. About an hour on two cores, most of it compiling; an interruption keeps nothing. ``--part`` names one of
several runs, each of which is kept.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, StaticCache

import exsel
from evidence.benchmarks.cpu_rows import keep_rows
from exsel.bench.measuring import Contender, CpuClock, Work, check_compiler, measure
from exsel.bench.model_contenders import SharedWeights
from exsel.cli.display import activity
from exsel.models.modeling import CACHE_NAME
from exsel.training.training_step import training_step

RESULTS = Path(__file__).parent / "results"
ORIGINAL = "original"
UPGRADES: dict[str, dict[str, bool]] = {
    "exclusive": {"exclusive": True},
    "selective": {"selective": True},
    "exclusive+selective": {"exclusive": True, "selective": True},
}
FAMILIES = ("gpt2", "llama")
TOKENS, STEPS = 256, 8


@dataclass(frozen=True, kw_only=True)
class TimedSize:
    """What models of one size have; ``sequences``: of a training step."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequences: int

    @property
    def families(self) -> tuple[str, ...]:
        """GPT-2 has no grouped heads."""
        return FAMILIES if self.heads == self.kv_heads else ("llama",)


SIZES = {
    "tiny": TimedSize(width=256, inner=682, layers=4, heads=4, kv_heads=4, vocabulary=4096, sequences=8),
    # SmolLM2-135M's.
    "135m": TimedSize(width=576, inner=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152, sequences=2),
}


def build_original(family: str, size: TimedSize) -> Any:
    """A model without dropout."""
    torch.manual_seed(0)
    if family == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_embd": size.width, "n_layer": size.layers, "n_head": size.heads, "n_positions": 1024}
        return GPT2LMHeadModel(GPT2Config(vocab_size=size.vocabulary, **shape, **dropout))
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def variant(original: nn.Module, name: str) -> Any:
    """The original, or a model with its very weights, upgraded."""
    if name == ORIGINAL:
        return original
    shared = {id(parameter): parameter for parameter in original.parameters()}
    model: nn.Module = copy.deepcopy(original, memo=dict(shared))
    return exsel.upgrade(model, **UPGRADES[name])


def generation(original: nn.Module, batch: int, ways: Sequence[str]) -> list[Contender]:
    """Decoding, each upgrade against the original run the same way."""

    def work(name: str, group: str) -> Work:
        model = variant(original, name).eval()
        cache = StaticCache(config=model.config, max_cache_len=TOKENS + STEPS)
        prompt = torch.randint(3, 100, (batch, TOKENS))
        with torch.no_grad():
            model(input_ids=prompt, **{CACHE_NAME: cache})
        token = prompt[:, :1].contiguous()
        step: Callable[..., Any] = model
        if group == "compiled":
            check_compiler()
            step = torch.compile(model, dynamic=False)

        def call() -> Tensor:
            for layer in cache.layers:
                layer.cumulative_length.fill_(TOKENS)
            with torch.no_grad():
                for place in range(TOKENS, TOKENS + STEPS):
                    position = torch.full((batch, 1), place)
                    logits: Tensor = step(input_ids=token, position_ids=position, **{CACHE_NAME: cache}).logits
            return logits

        return Work(forward=call, name="decode")

    return contenders(work, ways)


def training(original: nn.Module, batch: int) -> list[Contender]:
    """A compiled training step."""
    ids = torch.randint(3, 100, (batch, TOKENS))
    weights = SharedWeights()

    def work(name: str, group: str) -> Work:
        check_compiler()
        model = variant(original, name).train()
        compiled: Callable[..., Any] = torch.compile(model, dynamic=False)
        optimizer = weights.optimizer(model, lr=1e-5)

        def call() -> Tensor:
            return training_step(compiled(input_ids=ids, labels=ids, use_cache=False).loss, model, optimizer)

        return Work(forward=call, name="step")

    return contenders(work, ("compiled",))


def contenders(work: Callable[[str, str], Work], groups: Sequence[str]) -> list[Contender]:
    """The original in front of its upgrades, in each group."""
    return [
        Contender(name=name, group=group, floor=(group, ORIGINAL), prepare=functools.partial(work, name, group))
        for group in groups
        for name in (ORIGINAL, *UPGRADES)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="(%(default)s)")
    parser.add_argument("--ways", default="eager,compiled", help="training is compiled only (%(default)s)")
    parser.add_argument("--batches", default="1,8", help="of generation (%(default)s)")
    parser.add_argument("--rounds", type=int, help="by the time they take, from 5 to 20")
    parser.add_argument("--part", default="")
    arguments = parser.parse_args()
    ways, batches = arguments.ways.split(","), [int(batch) for batch in arguments.batches.split(",")]
    cases = [
        (subject, family, name, batch)
        for name in arguments.sizes.split(",")
        for family in SIZES[name].families
        for subject, batch in (
            *(("generation", batch) for batch in batches),
            *([("training", SIZES[name].sequences)] if "compiled" in ways else []),
        )
    ]
    rows: list[dict[str, Any]] = []
    with activity() as say:
        for number, (subject, family, name, batch) in enumerate(cases):
            say(f"{subject} {family} {name}, {batch} × {TOKENS} (case {number + 1} of {len(cases)})")
            torch.compiler.reset()
            gc.collect()
            original = build_original(family, SIZES[name])
            measured = measure(
                generation(original, batch, ways) if subject == "generation" else training(original, batch),
                clock=CpuClock(),
                device=torch.device("cpu"),
                rounds=arguments.rounds,
                say=say,
            )
            described = {
                "subject": f"upgraded {subject}",
                "shape": f"{family} {name}",
                "tokens": TOKENS,
                "batch": batch,
            }
            rows += [{**described, **row} for row in measured]
    path = RESULTS / f"upgrade_overhead_cpu{f'_{arguments.part}' if arguments.part else ''}.json"
    keep_rows(path, "evidence.benchmarks.upgrade_overhead", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
