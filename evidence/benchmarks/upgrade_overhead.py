"""What an upgraded transformers model costs beside the original, in one process and in turn, on the CPU.

    python -m evidence.benchmarks.upgrade_overhead [--sizes tiny,124m] [--rounds N] [--out FILE]

Generation: a call is 8 steps of one token on a static cache of 256 tokens, in batches of 1 and 8, eager and compiled.
Training: forward, backward, clipping and AdamW on 8 × 256 tokens (124m: 2 × 256), compiled. All models of a case
share one set of weights. About an hour on two cores, most of it compiling; an interruption keeps nothing.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, StaticCache

import exsel
from exsel.bench.measuring import Contender, CpuClock, Work, check_compiler, measure
from exsel.bench.model_contenders import SharedWeights
from exsel.cli.bench_display import make_display
from exsel.files import write_json
from exsel.machine import describe_machine, git_revision
from exsel.training.training_step import training_step

OUT = Path(__file__).parent / "results" / "upgrade_overhead_cpu.json"
ORIGINAL = "original"
UPGRADES: dict[str, dict[str, bool]] = {
    "exclusive": {"exclusive": True},
    "selective": {"selective": True},
    "exclusive+selective": {"exclusive": True, "selective": True},
}
FAMILIES = ("gpt2", "llama")
#: Width, layers, heads, vocabulary; sequences of a training step.
SIZES = {"tiny": ((256, 4, 4, 4096), 8), "124m": ((768, 12, 12, 50304), 2)}
TOKENS, STEPS, BATCHES = 256, 8, (1, 8)


def build_original(family: str, size: str) -> Any:
    """A model without dropout."""
    (width, layers, heads, vocabulary), _ = SIZES[size]
    torch.manual_seed(0)
    if family == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, **dropout))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
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


def generation(original: nn.Module, batch: int) -> list[Contender]:
    """Decoding, each upgrade against the original run the same way."""

    def work(name: str, group: str) -> Work:
        model = variant(original, name).eval()
        cache = StaticCache(config=model.config, max_cache_len=TOKENS + STEPS)
        prompt = torch.randint(3, 100, (batch, TOKENS))
        with torch.no_grad():
            model(input_ids=prompt, past_key_values=cache)
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
                    logits: Tensor = step(input_ids=token, past_key_values=cache, position_ids=position).logits
            return logits

        return Work(forward=call, name="decode")

    return contenders(work, ("eager", "compiled"))


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
    parser.add_argument("--rounds", type=int, help="by the time they take, from 5 to 20")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    cases = [
        (subject, family, size, batch)
        for size in arguments.sizes.split(",")
        for family in FAMILIES
        for subject, batch in (*(("generation", batch) for batch in BATCHES), ("training", SIZES[size][1]))
    ]
    rows: list[dict[str, Any]] = []
    with make_display() as display:
        for number, (subject, family, size, batch) in enumerate(cases):
            display.case(f"{subject} {family} {size}, {batch} × {TOKENS}", number, len(cases))
            torch.compiler.reset()
            gc.collect()
            original = build_original(family, size)
            make = generation if subject == "generation" else training
            measured = measure(
                make(original, batch),
                clock=CpuClock(),
                device=torch.device("cpu"),
                rounds=arguments.rounds,
                display=display,
            )
            described = {
                "subject": f"upgraded {subject}",
                "shape": f"{family} {size}",
                "tokens": TOKENS,
                "batch": batch,
            }
            rows += [{**described, **row} for row in measured]
    rounds = "" if arguments.rounds is None else f" --rounds {arguments.rounds}"
    record = {
        "format": 1,
        "command": f"python -m evidence.benchmarks.upgrade_overhead --sizes {arguments.sizes}{rounds}",
        "device": "cpu",
        "dtype": "float32",
        "partial": False,
        "machine": describe_machine("cpu"),
        "git_revision": git_revision(),
        "rows": rows,
    }
    write_json(arguments.out, record)
    print(f"kept: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
