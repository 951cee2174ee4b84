"""The named sizes of :class:`exsel.ExselForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Width, depth and heads by name. Beyond the three small ones, Zhai (arXiv:2603.09078), Table 1.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "num_hidden_layers": 4,
        "hidden_size": 192,
        "num_attention_heads": 6,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "initializer_range": 0.04,  # 0.02 is GPT-2's at width 768; the width is a quarter, so twice that
    },
    "25m": {
        "num_hidden_layers": 8,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "initializer_range": 0.024,  # as above: times the root of 768 / 512
    },
    "124m": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    },
    "0.7b": {"num_hidden_layers": 24, "hidden_size": 1536, "num_attention_heads": 6, "head_dim": 256},
    "1.4b": {"num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 24, "head_dim": 128},
    "2.7b": {"num_hidden_layers": 32, "hidden_size": 2560, "num_attention_heads": 24, "head_dim": 128},
}
