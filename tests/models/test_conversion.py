from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from exsel import ExselConfig, ExselForCausalLM
from exsel.errors import ExselError
from exsel.models.conversion import exsel_values

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[type[PreTrainedConfig], Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama tied, wide heads, another epsilon": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "head_dim": 16, "rms_norm_eps": 1e-2},
    ),
    "llama 3's positions": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "llama with the older fields": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "mistral without a window": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "qwen3 with windows": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_converted_model_computes_the_same(name: str) -> None:
    config_type, model_type, options = CASES[name]
    original = model_type(config_type(**SMALL, **options)).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    values = json.loads(json.dumps(original.config.to_dict()))
    before = json.dumps(values)
    converted = ExselForCausalLM(ExselConfig(**exsel_values(values))).eval()
    assert json.dumps(values) == before
    converted.load_state_dict(original.state_dict(), strict=True)
    tokens = torch.randint(0, 61, (2, 40))
    expected = original(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(converted(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert converted.config.eos_token_id == original.config.eos_token_id
    assert converted.config.max_position_embeddings == 64


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "llama", "attention_bias": True}, "llama configuration with attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "llama configuration with mlp_bias"),
        ({"model_type": "qwen3", "attention_bias": True}, "qwen3 configuration with attention_bias"),
        ({"model_type": "mistral", "hidden_act": "gelu"}, "mistral configuration with hidden_act='gelu'"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised llama"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 32}, "mistral configuration with layer_types"),
        ({"model_type": "gpt2"}, "type 'gpt2' cannot be trained here: it must be of type exsel, llama, mistral, qwen3"),
        ({}, "type 'None' cannot"),
        ({"model_type": "exsel", "hiden_size": 4}, "no field 'hiden_size'"),
        ({"model_type": "llama", "hidden_size": "wide"}, "not a configuration of type 'llama'"),
    ],
)
def test_what_the_decoder_cannot_express_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExselError) as caught:
        exsel_values(values)
    assert reason in str(caught.value)


def test_a_saved_configuration_of_its_own_comes_back() -> None:
    config = ExselConfig(**{**SMALL, "norm": "rmsnorm", "mlp": "swiglu", "sliding_window": 9})
    assert ExselConfig(**exsel_values(config.to_dict())).to_dict() == config.to_dict()


def test_a_saved_model_of_ours_is_a_configuration_too() -> None:
    saved = json.loads(ExselConfig(hidden_size=96).to_json_string())
    assert ExselConfig.from_dict(exsel_values(saved)).hidden_size == 96
