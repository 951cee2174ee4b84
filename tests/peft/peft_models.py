"""Small models, and adapters whose weights have left their start."""

from __future__ import annotations

import torch
from peft import LoraConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 50


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def lora(**options: object) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)


def tokens(num_tokens: int = 9) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (2, num_tokens), generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every adapter parameter away from where it starts, the same wherever it is in the model's order."""
    for name, parameter in sorted(model.named_parameters()):
        if ".exsel." in name or "lora_" in name:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + len(name)))
            parameter.data += 0.3 * noise.to(parameter)
    return model
