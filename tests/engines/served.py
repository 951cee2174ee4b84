"""Models that servers are tested with, and what they are to answer: what transformers computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, Qwen3Config

import exsel
from exsel import ExselConfig, ExselForCausalLM, SelectiveConfig

TOKENS, PROMPTS, VOCABULARY = 20, 16, 96
BOTH: dict[str, Any] = {"exclusive": "learned", "selective": SelectiveConfig(key=True)}
SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256},
}
#: The tokens of a continuation and their log-probabilities.
Answer = tuple[list[int], list[float]]
#: By case the model's folder, and what is to come for each prompt.
Wanted = dict[str, tuple[Path, list[Answer]]]


@dataclass(frozen=True)
class Case:
    """A model: exsel's own, or a configuration of transformers that is upgraded."""

    config: Any
    mechanisms: dict[str, Any] = field(default_factory=dict)


def own(**values: Any) -> Case:
    return Case(ExselConfig(**SIZES, **values))


CASES = {
    "own, selective": own(selective=SelectiveConfig(), mlp="gelu"),
    "own, both": own(**BOTH, qk_norm=True),
    "own, linear": own(exclusive=0.5, selective=SelectiveConfig(token="linear", position_per_head=False)),
    "own, frequency": own(selective=SelectiveConfig(token="frequency")),
    "own, window": own(**BOTH, sliding_window=24),
    "llama, exclusive": Case(LlamaConfig(**SIZES), {"exclusive": True}),
    "llama, both": Case(LlamaConfig(**SIZES), BOTH),
    "qwen3, some layers": Case(
        Qwen3Config(**SIZES), {**BOTH, "exclusive": {"strength": "learned", "layers": "last:1"}}
    ),
    "phi3, both": Case(Phi3Config(**SIZES, pad_token_id=0), BOTH),  # one projection for queries, keys and values
}


def save(case: Case, folder: Path) -> Any:
    """The model with weights that tell tokens apart and mechanisms that act, saved."""
    torch.manual_seed(0)
    if isinstance(case.config, ExselConfig):
        model = ExselForCausalLM(case.config)
    else:
        model = exsel.upgrade(AutoModelForCausalLM.from_config(case.config), **case.mechanisms)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_logit"):
                parameter.copy_(torch.randn_like(parameter) - 1)
            elif "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.3 if "temperatures" in name or "strength" in name else 0.15)
    if isinstance(model, ExselForCausalLM) and model.model.token_log_frequency is not None:
        model.model.set_token_counts(torch.arange(VOCABULARY).square())
    model.eval().save_pretrained(folder)
    return model


def prompts() -> list[list[int]]:
    """Of 1 to 100 tokens; every third begins as the one before it, and is found in the cache."""
    generator = torch.Generator().manual_seed(1)
    made: list[list[int]] = []
    for index in range(PROMPTS):
        length = 1 + 99 * index // (PROMPTS - 1)
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        made.append(made[-1] + ids[: length - len(made[-1])] if index % 3 == 2 else ids)
    return made


@torch.no_grad()
def expected(model: Any, prompt: list[int]) -> Answer:
    """The greedy tokens and their log-probabilities, every token computed anew with all before it."""
    ids, chosen = list(prompt), []
    for _ in range(TOKENS):
        logs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
        ids.append(int(logs.argmax()))
        chosen.append(float(logs.max()))
    return ids[len(prompt) :], chosen


def save_all(folder: Path, names: Iterable[str] = tuple(CASES)) -> Wanted:
    """For each case its folder, and what is to come for each prompt."""
    made = {}
    for name in names:
        own_folder = folder / name.replace(", ", "-")
        model = save(CASES[name], own_folder)
        made[name] = own_folder, [expected(model, prompt) for prompt in prompts()]
    return made


def assert_same(got: list[Answer], wanted: list[Answer]) -> None:
    for (tokens, logs), (own_tokens, own_logs) in zip(got, wanted, strict=True):
        assert tokens == own_tokens
        assert logs == pytest.approx(own_logs, abs=1e-3)
