"""Models to fine-tune, with random weights, saved in folders with the tokenizer that reads bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import exsel

CONTEXT = 64
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# Weights large enough for attention to matter.
_COMMON = {"vocab_size": 259, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 1}


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, **_COMMON))
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                intermediate_size=48, num_key_value_heads=1, max_position_embeddings=CONTEXT, **_SIZE, **_COMMON
            )
        )
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(n_layer=2, n_head=2, hidden_size=32, **_COMMON))
    if kind == "bert":
        return BertLMHeadModel(
            BertConfig(intermediate_size=48, max_position_embeddings=CONTEXT, is_decoder=False, **_SIZE, **_COMMON)
        )
    if kind == "t5":
        return T5ForConditionalGeneration(T5Config(vocab_size=259, d_model=32, d_kv=16, d_ff=48, num_layers=1))
    assert kind == "exsel"
    config: Any = exsel.ExselConfig(
        num_key_value_heads=1, head_dim=16, max_position_embeddings=CONTEXT, **_SIZE, **_COMMON
    )
    return exsel.ExselForCausalLM(config)


def write_source(folder: Path, kind: str) -> Path:
    build(kind).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder
