"""Convert the configurations of architectures that :class:`ExselForCausalLM` can compute exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from inspect import get_annotations
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from exsel.errors import ExselError
from exsel.models.configuration import ExselConfig

#: The architectures, and whether they have a norm on queries and keys.
CONVERTIBLE: Mapping[str, bool] = {"llama": False, "mistral": False, "qwen3": True}


def exsel_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of :class:`ExselConfig` that compute what a ``config.json`` says, with its weights; or an ExselError."""
    kind = str(values.get("model_type"))
    if kind == ExselConfig.model_type:
        # transformers would keep a misspelt field without using it.
        plain = ExselConfig()
        known = {field.name for field in fields(ExselConfig)} | plain.to_dict().keys()
        known |= json.loads(plain.to_json_string()).keys()  # what config.json holds besides
        if unknown := sorted(values.keys() - known):
            raise ExselError(f"ExselConfig has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        return dict(values)
    if kind not in CONVERTIBLE:
        raise ExselError(
            f"a configuration of type {kind!r} cannot be trained here: it must be of type exsel, "
            f"{', '.join(CONVERTIBLE)}"
        )
    try:
        # The architecture's own class fills in its defaults and reads the fields of older versions.
        config = CONFIG_MAPPING[kind].from_dict(deepcopy(dict(values)))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ExselError(f"this is not a configuration of type {kind!r}: {' '.join(str(error).split())}") from error
    _refuse_what_differs(kind, config, values)
    shared = get_annotations(ExselConfig).keys() & {field.name for field in fields(config)}
    return {
        **{name: getattr(config, name) for name in sorted(shared)},  # each means the same in both
        "norm": "rmsnorm",
        "norm_eps": config.rms_norm_eps,
        "mlp": "swiglu",
        "embedding_norm": False,
        "qk_norm": CONVERTIBLE[kind],
    }


def _refuse_what_differs(kind: str, config: PreTrainedConfig, values: Mapping[str, Any]) -> None:
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            raise ExselError(f"a {kind} configuration with {name} cannot be trained here: the decoder has no biases")
    if config.hidden_act not in ("silu", "swish"):
        raise ExselError(
            f"a {kind} configuration with hidden_act={config.hidden_act!r} cannot be trained here: "
            "the decoder's gated MLP has silu alone"
        )
    if kind != "qwen3" and values.get("layer_types") is not None:
        raise ExselError(f"a {kind} configuration with layer_types cannot be trained here: {kind} itself ignores them")
    if values.get("quantization_config") is not None:
        raise ExselError(f"a quantised {kind} configuration cannot be trained here: leave out quantization_config")
