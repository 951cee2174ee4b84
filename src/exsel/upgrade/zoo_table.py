"""What the zoo's general rules do not know about single model types."""

from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]

# Fields of a type's small configuration; a dict for a sub-configuration's name goes into that sub-configuration.
# "__init__" is given to the default configuration already.
OVERRIDES: dict[str, dict[str, Any]] = {}

# Types without a default configuration, made of other types' small ones.
COMPOSITES: dict[str, dict[str, str]] = {
    "encoder-decoder": {"encoder": "bert", "decoder": "bert"},
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "gpt2"},
    "speech-encoder-decoder": {"encoder": "wav2vec2", "decoder": "bert"},
    "vision-text-dual-encoder": {"vision_config": "vit", "text_config": "bert"},
}

# Types that are not worth an attempt, and why.
REFUSED: dict[str, str] = {}

# Inputs that the general rules get wrong, by type: name → (kind, *shape), or None to leave the input out. Kinds: see
# exsel.upgrade.zoo_inputs.
INPUTS: dict[str, dict[str, tuple[Any, ...] | None]] = {}
