"""The configuration of :class:`exsel.ExselForCausalLM`."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from exsel.config import ExclusiveConfig, SelectiveConfig, resolve_layers
from exsel.model_folder import HOW_TO_LOAD, write_card


class ExselConfig(PreTrainedConfig):
    """Configuration of the decoder of the exclusive self-attention paper, with both mechanisms.

    Args:
        vocab_size: number of tokens.
        hidden_size: width E.
        intermediate_size: width of the MLP's hidden layer; ``None``: 4 E for GELU, 8/3 E (to a multiple of 64) for
            SwiGLU.
        num_hidden_layers: depth.
        num_attention_heads: H.
        num_key_value_heads: Hkv, a divisor of H; ``None``: H.
        head_dim: D; ``None``: E / H. H · D need not be E.
        max_position_embeddings: the context length that the model is meant for.
        norm: ``"layernorm"`` (without bias) or ``"rmsnorm"``.
        norm_eps: added to the variance.
        mlp: ``"gelu"`` or ``"swiglu"``.
        embedding_norm: a norm right after the token embedding.
        qk_norm: RMSNorm over each head's query and key, before the rotary embedding.
        sliding_window: how many tokens a ``sliding_attention`` layer sees, the token itself among them.
        layer_types: ``"full_attention"`` or ``"sliding_attention"`` for each layer; ``None``: all sliding where
            there is a ``sliding_window``, else all full.
        rope_parameters: as in transformers; ``None``: the default rotary embedding of base 10000.
        attention_dropout: of the attention weights, in training.
        initializer_range: standard deviation of the initial weights (of those that write to the residual stream:
            divided by √(2 · layers)).
        tie_word_embeddings: the output layer is the token embedding.
        exclusive: ``True``, a strength or an :class:`exsel.ExclusiveConfig`; ``None`` or ``False``: plain outputs. See
            :meth:`exsel.ExclusiveConfig.read`.
        selective: ``True`` or an :class:`exsel.SelectiveConfig`; ``None`` or ``False``: no temperatures.

    Raises:
        ValueError: values that do not fit together.
        TypeError: an ``exclusive`` or ``selective`` of another type.
    """

    model_type = "exsel"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 259
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    mlp: str = "gelu"
    embedding_norm: bool = True
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    # Any: transformers checks the type of an assigned value before __setattr__ here converts it.
    exclusive: Any = None
    selective: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("exclusive", "selective"):
            value = (ExclusiveConfig if name == "exclusive" else SelectiveConfig).read(value)
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("transformers_weights") == HOW_TO_LOAD:
            del kwargs["transformers_weights"]
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} must be a multiple of "
                    f"num_attention_heads={self.num_attention_heads}, or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")
        if self.norm not in ("layernorm", "rmsnorm"):
            raise ValueError(f"norm must be 'layernorm' or 'rmsnorm', got {self.norm!r}")
        if self.mlp not in ("gelu", "swiglu"):
            raise ValueError(f"mlp must be 'gelu' or 'swiglu', got {self.mlp!r}")
        if self.intermediate_size is None:
            eight_thirds = -(-8 * self.hidden_size // 3)
            self.intermediate_size = 4 * self.hidden_size if self.mlp == "gelu" else -(-eight_thirds // 64) * 64
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 (the token itself), got {self.sliding_window}")
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers of {self.num_hidden_layers}")
        if unknown := set(self.layer_types) - {"full_attention", "sliding_attention"}:
            raise ValueError(f"layer_types must be 'full_attention' or 'sliding_attention', got {unknown.pop()!r}")
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types has sliding_attention layers: give sliding_window")
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
        for mechanism in (self.exclusive, self.selective):
            if mechanism is not None:
                resolve_layers(mechanism.layers, self.num_hidden_layers)
        super().__post_init__(**kwargs)

    def mechanisms_in(self, layer: int) -> tuple[ExclusiveConfig | None, SelectiveConfig | None]:
        """The mechanisms of layer ``layer``."""
        exclusive, selective = (
            config if config is not None and layer in resolve_layers(config.layers, self.num_hidden_layers) else None
            for config in (self.exclusive, self.selective)
        )
        return exclusive, selective

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As every configuration, and write a model card. Other classes refuse to load the folder."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        self.write_card(Path(save_directory))

    def write_card(self, folder: Path) -> None:
        """Write the model card of a saved model."""
        mechanisms = {
            f"{name} attention": value.to_dict()
            for name, value in (("exclusive", self.exclusive), ("selective", self.selective))
            if isinstance(value, (ExclusiveConfig, SelectiveConfig))
        }
        write_card(folder, "ExselForCausalLM", mechanisms)

    def to_json_string(self, use_diff: bool = True) -> str:
        """What ``config.json`` holds."""
        values = json.loads(super().to_json_string(use_diff))
        if self._auto_class is None:  # these classes are not in the folder
            values.pop("auto_map", None)
        return json.dumps({**values, "transformers_weights": HOW_TO_LOAD}, indent=2, sort_keys=True) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types, as it is saved in ``config.json``."""
        values: dict[str, Any] = super().to_dict()
        for name in ("exclusive", "selective"):
            if isinstance(values.get(name), (ExclusiveConfig, SelectiveConfig)):
                values[name] = values[name].to_dict()
        return values
