"""How many tokens a model is made for, and how many it can take."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import BloomConfig, GPT2Config, GPTJConfig, LlamaConfig, OPTConfig, T5Config
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from exsel.lengths import context_of, longest_sequence

CASES = [
    (GPT2Config(n_positions=32, n_embd=16, n_layer=1, n_head=2, vocab_size=9), 32, 32),  # learned
    (
        OPTConfig(max_position_embeddings=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8),
        32,
        32,
    ),
    (GPTJConfig(n_positions=32, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, vocab_size=9), 32, 32),  # tabulated
    (LlamaConfig(max_position_embeddings=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2), 32, None),
    (BloomConfig(seq_length=32, hidden_size=16, n_layer=1, n_head=2, vocab_size=9), 32, None),  # linear biases
    (T5Config(d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=9), None, None),  # relative
]


@pytest.mark.parametrize(("config", "context", "longest"), CASES, ids=lambda value: getattr(value, "model_type", ""))
def test_architectures(config: Any, context: int | None, longest: int | None) -> None:
    assert context_of(config) == context
    assert longest_sequence(MODEL_MAPPING[type(config)](config)) == longest


def test_a_module_without_a_configuration() -> None:
    assert longest_sequence(nn.Linear(2, 2)) is None
