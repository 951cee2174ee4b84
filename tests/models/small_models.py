"""Small models of the four variants."""

from __future__ import annotations

from typing import Any

import torch

from exsel import ExclusiveConfig, ExselConfig, ExselForCausalLM, SelectiveConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "exclusive": {"exclusive": ExclusiveConfig()},
    "selective": {"selective": SelectiveConfig()},
    "both": {"exclusive": ExclusiveConfig(), "selective": SelectiveConfig()},
}
SHAPES: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {
        "num_key_value_heads": 2,
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "qk_norm": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
}


def small_config(**options: Any) -> ExselConfig:
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
        "initializer_range": 0.2,
    }
    return ExselConfig(**{**sizes, **options})


def small_model(*, seed: int = 0, attn_implementation: str = "exsel", **options: Any) -> ExselForCausalLM:
    """A small model with every new parameter away from where it starts, in evaluation mode."""
    torch.manual_seed(seed)
    config = small_config(**options)
    config._attn_implementation = attn_implementation
    model = ExselForCausalLM(config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_logit"):
                parameter.copy_(torch.randn_like(parameter) - 1)
            elif "temperatures" in name or "strength_logit" in name or "_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return model
