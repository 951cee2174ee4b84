"""Small transformers models of several kinds of attention, with weights away from where any of them starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

import exsel
from exsel import ExclusiveConfig

VOCABULARY, TOKENS, WINDOW = 61, 9, 4
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_GPT = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
_WINDOWED = {
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_BOTH_SIDES = {"vocab_size": VOCABULARY, "d_model": 32}

#: By name: the model's class, its configuration's, and its options.
_KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    # q, k and v apart, grouped heads
    "llama": (LlamaForCausalLM, LlamaConfig, {**_SIZES, **_SPECIAL, **_GROUPED}),
    "mistral": (MistralForCausalLM, MistralConfig, {**_SIZES, **_SPECIAL, **_GROUPED, "sliding_window": WINDOW}),
    # norms of queries and keys
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**_SIZES, **_SPECIAL, **_GROUPED}),
    # soft caps; norms of queries and keys; windows in every other layer
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**_SIZES, **_SPECIAL, **_GROUPED, **_WINDOWED}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {**_SIZES, **_SPECIAL, **_GROUPED, **_WINDOWED}),
    # fused
    "gpt2": (GPT2LMHeadModel, GPT2Config, {**_GPT, **_DROPOUT}),
    # written out; the second without positions in its layers
    "gptj": (GPTJForCausalLM, GPTJConfig, {**_GPT, **_DROPOUT, "rotary_dim": 4}),
    "bloom": (BloomForCausalLM, BloomConfig, {"vocab_size": VOCABULARY, "hidden_size": 32, "n_head": 4}),
    # whose layers are called with ALiBi, with a mask of what is hidden, or with the model's positions
    "falcon": (FalconForCausalLM, FalconConfig, {**_SIZES, **_SPECIAL, "num_attention_heads": 4, "alibi": True}),
    "mpt": (MptForCausalLM, MptConfig, {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {**_SIZES, **_SPECIAL, "num_attention_heads": 4}),
    # not causal
    "bert": (BertModel, BertConfig, {**_SIZES, "num_attention_heads": 4}),
    "vit": (
        ViTModel,
        ViTConfig,
        {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 12, "patch_size": 4},
    ),
    # an encoder and a decoder, the first with a bias of positions
    "t5": (
        T5ForConditionalGeneration,
        T5Config,
        {**_BOTH_SIDES, "d_kv": 8, "d_ff": 48, "num_heads": 4, "decoder_start_token_id": 0, "dropout_rate": 0.0},
    ),
    "bart": (
        BartForConditionalGeneration,
        BartConfig,
        {
            **_BOTH_SIDES,
            **_SPECIAL,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
    ),
}
_LAYERS = {
    "gpt2": ("n_layer",),
    "gptj": ("n_layer",),
    "bloom": ("n_layer",),
    "mpt": ("n_layers",),
    "t5": ("num_layers",),
    "bart": ("encoder_layers", "decoder_layers"),
}
IDS = torch.randint(3, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(1))
PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def plain(name: str, implementation: str | None = None, layers: int = 2) -> Any:
    """A model of a kind, in eval mode."""
    model_class, config_class, options = _KINDS[name]
    options = {**options, **dict.fromkeys(_LAYERS.get(name, ("num_hidden_layers",)), layers)}
    if layers != 2:
        options.pop("layer_types", None)
    chosen = {} if implementation is None else {"attn_implementation": implementation}
    model = model_class._from_config(config_class(**options), **chosen)
    _draw(model)
    return model.eval()


def upgrade(model: Any, exclusive: ExclusiveConfig | bool = True) -> Any:
    """Put both mechanisms in, each with an effect."""
    exsel.upgrade(model, exclusive=exclusive, selective=True)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "exsel." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) - float("position" in name))
    return model


def upgraded(name: str, implementation: str | None = None, layers: int = 2, exclusive: Any = True) -> Any:
    return upgrade(plain(name, implementation, layers), exclusive)


def inputs(name: str) -> dict[str, Tensor]:
    if name == "vit":
        return {"pixel_values": PIXELS}
    if name in ("t5", "bart"):
        return {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}
    return {"input_ids": IDS}


def outputs(model: Any, name: str, **options: Any) -> Tensor:
    """Logits, or the last hidden states."""
    with torch.no_grad():
        first: Tensor = model(**inputs(name), **options)[0]
    return first


def _draw(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            is_matrix = parameter.ndim > 1
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * drawn if is_matrix else 0.5 + 0.3 * drawn)


#: PyTorch compiles FlexAttention for these processors alone.
FLEX = pytest.param(
    "flex_attention",
    marks=pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="FlexAttention needs AVX2 on a CPU"
    ),
)


def assert_near(got: Tensor, expected: Tensor, budget: float = 3e-6) -> None:
    """Within the rounding of float32, relative to the largest number."""
    assert got.shape == expected.shape
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert error <= budget, f"{error:.1e}"
