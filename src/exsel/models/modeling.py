"""A decoder-only language model with both mechanisms, written as serving engines expect a transformers model.

The decoder of Zhai (arXiv:2603.09078): rotary positions, a norm right after the token embedding, pre-norm blocks,
GELU, a head size of its own. Attention goes through one call of transformers' attention interface, with a
:class:`exsel.nn.mechanism_pass.MechanismPass` before and after it: any attention implementation and cache will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from exsel.attention_interface import IMPLEMENTATION
from exsel.errors import LoadError
from exsel.model_folder import check_weights
from exsel.models.configuration import ExselConfig
from exsel.nn import Exclusive, Temperature
from exsel.nn.band import Band
from exsel.nn.exclusive import check_strengths
from exsel.nn.mechanism_pass import MechanismPass
from exsel.nn.projections import Geometry
from exsel.nn.temperature import build_temperatures
from exsel.tensor_parallel import heads_plan

#: What transformers calls a model's cache: ``cache`` from 5.24 on, ``past_key_values`` before.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def _norm(config: ExselConfig, size: int) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=False)


def _residual_linear(in_features: int, out_features: int) -> nn.Linear:
    """A projection that writes to the residual stream: marked, since its weights start smaller."""
    linear = nn.Linear(in_features, out_features, bias=False)
    linear.writes_to_residual = True  # type: ignore[assignment]
    return linear


class ExselMLP(nn.Module):
    """GELU or SwiGLU."""

    def __init__(self, config: ExselConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate_proj = None
        if config.mlp == "swiglu":
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = _residual_linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[B, T, E]`` → ``[B, T, E]``."""
        up = self.up_proj(hidden_states)
        inner = (
            nn.functional.gelu(up) if self.gate_proj is None else nn.functional.silu(self.gate_proj(hidden_states)) * up
        )
        output: Tensor = self.down_proj(inner)
        return output


class ExselAttention(nn.Module):
    """Self-attention through transformers' attention interface, exclusive and selective where configured."""

    def __init__(self, config: ExselConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        assert config.layer_types is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        is_sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if is_sliding else None

        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = _residual_linear(config.num_attention_heads * self.head_dim, config.hidden_size)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

        exclusive, selective = config.mechanisms_in(layer_idx)
        self.exclusive = None
        if exclusive is not None:
            self.exclusive = Exclusive(config.num_attention_heads, exclusive.strength)
        geometry = Geometry(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.temperatures = build_temperatures(selective, geometry, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        layer_past: Cache | None = None,
        sequence_position: Tensor | None = None,
        token_frequency: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, T, E]`` → ``[B, T, E]`` and the attention weights, where the implementation returns them."""
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape)
        key_states = self.k_proj(hidden_states).view(hidden_shape)
        value_states = self.v_proj(hidden_states).view(hidden_shape)
        mechanisms = MechanismPass(
            self.exclusive,
            self.temperatures,
            {"query": query_states, "key": key_states, "value": value_states},
            sequence_position,
            hidden_states=hidden_states,
            token_frequency=token_frequency,
        )
        query_states = mechanisms.scale_query(self.q_norm(query_states.transpose(1, 2)))
        key_states = self.k_norm(key_states.transpose(1, 2))
        value_states = value_states.transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if layer_past is not None:
            key_states, value_states = mechanisms.to_cache(key_states, value_states)
            key_states, value_states = layer_past.update(key_states, value_states, self.layer_idx)
        attention_interface: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        takes_mechanisms = getattr(attention_interface, "takes_mechanisms", False)
        query_states, key_states, value_states, options = mechanisms.before(
            query_states, key_states, value_states, takes_mechanisms
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **options,
            **kwargs,
        )
        if not takes_mechanisms:
            attn_output = mechanisms.after(attn_output)
        return self.o_proj(attn_output.reshape(*hidden_states.shape[:-1], -1)), attn_weights


class ExselDecoderLayer(GradientCheckpointingLayer):
    """A pre-norm block."""

    def __init__(self, config: ExselConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn = ExselAttention(config, layer_idx)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = ExselMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """``[B, T, E]`` → ``[B, T, E]``; keyword arguments go to the attention."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        output: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return output


class ExselPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the model."""

    config: ExselConfig
    config_class = ExselConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ExselDecoderLayer"]  # noqa: RUF012 (transformers' own declaration)
    _skip_keys_device_placement = ["cache", "layer_past", "past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ExselDecoderLayer, "attentions": ExselAttention}  # noqa: RUF012

    def init_parallel_plans(self) -> None:
        """The configuration's plan for tensor parallelism, and the mechanisms' parameters divided with their heads."""
        super().init_parallel_plans()
        if self.base_model is self:
            if self.config.mlp == "gelu":
                del self._tp_plan["layers.*.mlp.gate_proj"]
            self._tp_plan.update(heads_plan(self, ""))

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Use our own operator by default."""
        requested_attention = IMPLEMENTATION if requested_attention is None else requested_attention
        implementation: str = super().get_correct_attn_implementation(requested_attention, is_init_check)
        return implementation

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``; a LoadError if weights are missing, too many, of other strengths.

        With a ``config`` of one's own, or ``exclusive`` or ``selective``, mechanisms that the folder lacks start anew.
        """
        with_info = kwargs.pop("output_loading_info", False)
        config = kwargs.get("config")
        is_as_saved = config is None or config.name_or_path == str(folder)
        is_as_saved = is_as_saved and not {"exclusive", "selective"} & kwargs.keys()
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        if "fixed_strength" in {name.rpartition(".")[2] for name in info["missing_keys"]}:
            raise LoadError(f"{folder} has an exclusive model's configuration, and weights that do not know of it")
        if is_as_saved:
            is_part = cls.__name__ not in (model.config.architectures or ())
            check_weights(folder, model, info, may_miss_head=is_part, may_have_other_head=is_part)
        check_strengths(model, folder)
        return (model, info) if with_info else model

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers, with exsel's model card: transformers has put its own over it by now."""
        self.config.write_card(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and getattr(module, "writes_to_residual", False):
            # As in GPT-2: the variance of the residual stream does not grow with depth.
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            initialization.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, (Exclusive, Temperature)):
            module.reset_parameters()  # as the functions of ``initialization``: transformers has wrapped PyTorch's
            if isinstance(module, Exclusive) and module.fixed_strength is not None:
                initialization.copy_(module.fixed_strength, module.as_text())
        elif isinstance(module, ExselModel) and module.token_log_frequency is not None:
            initialization.constant_(module.token_log_frequency, math.nan)


class ExselModel(ExselPreTrainedModel):
    """The decoder without its output layer."""

    __call__: Callable[..., BaseModelOutputWithPast]
    token_log_frequency: Tensor | None

    def __init__(self, config: ExselConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_norm = _norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList([ExselDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = _norm(config, config.hidden_size)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        # NaN until it is set or loaded, so that a forgotten call shows; zeros would have no effect and hide it.
        frequency = None
        if config.selective is not None and config.selective.token == "frequency":
            frequency = torch.full((config.vocab_size,), math.nan)
        self.register_buffer("token_log_frequency", frequency)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def set_token_counts(self, counts: Tensor) -> None:
        """Give ``token="frequency"`` its feature: φ = log(1 + count), standardised over the tokens by their counts.

        Args:
            counts: ``[vocab_size]``, how often each token occurs in the training data.

        Raises:
            ValueError: a model that has no use for them, another number of tokens, or no tokens counted.
        """
        if self.token_log_frequency is None:
            raise ValueError("this model has no frequency temperatures: SelectiveConfig(token='frequency') makes them")
        if counts.shape != self.token_log_frequency.shape or not counts.sum() > 0:
            raise ValueError(
                f"counts must hold {self.config.vocab_size} numbers that are not all 0, got {tuple(counts.shape)}"
            )
        counts = counts.double()
        weight = counts / counts.sum()
        log_frequency = counts.log1p()
        mean = (weight * log_frequency).sum()
        deviation = (weight * (log_frequency - mean).square()).sum().sqrt().clamp_min(1e-6)
        self.token_log_frequency.copy_((log_frequency - mean) / deviation)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states ``[B, T, E]``.

        ``cache`` and ``past_key_values`` are one: transformers 5.24 has renamed it.
        ``position_ids`` that restart (packed documents) restart the selective positions and, without an
        ``attention_mask``, keep the documents apart. A two-dimensional ``attention_mask`` alone gives positions
        that start after the padding.
        """
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        token_frequency = None
        if self.token_log_frequency is not None:
            if input_ids is None:
                raise ValueError("token='frequency' reads input_ids: inputs_embeds alone do not tell the tokens")
            token_frequency = self.token_log_frequency[input_ids]
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        num_tokens = inputs_embeds.shape[1]
        masks = attention_mask
        if not isinstance(masks, dict):
            given = (self.config, inputs_embeds, attention_mask, cache, position_ids)
            assert self.config.layer_types is not None
            makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
            masks = {kind: make(*given) for kind, make in makers.items() if kind in self.config.layer_types}
            if self.layers[0]._compiled_call_impl is not None:  # each layer's graph would make the mask anew
                masks = {kind: mask.mask() if isinstance(mask, Band) else mask for kind, mask in masks.items()}
        # After the masks: given a cache, transformers takes positions that restart for positions that go on.
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -num_tokens:]
            else:
                past = cache.get_seq_length() if cache is not None else 0
                position_ids = torch.arange(num_tokens, device=inputs_embeds.device).unsqueeze(0) + past

        hidden_states = self.embed_norm(inputs_embeds)
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for index, layer in enumerate(self.layers):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[self.config.layer_types[index]],  # type: ignore[index]
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                layer_past=cache,
                sequence_position=position_ids.clamp_min(0) + 1,
                token_frequency=token_frequency,
                **kwargs,
            )
        return BaseModelOutputWithPast(self.norm(hidden_states), cache)


class ExselForCausalLM(ExselPreTrainedModel, GenerationMixin):
    """The decoder with its output layer: a transformers language model.

    Source: Zhai, "Exclusive Self Attention", arXiv:2603.09078 (2026), Section 4, for the decoder.
    """

    __call__: Callable[..., CausalLMOutputWithPast]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: ExselConfig) -> None:
        super().__init__(config)
        self.model = ExselModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocabulary]``, and with ``labels`` (not shifted; -100 is left out) the loss in nats.

        The loss is the mean over the predictions, or their sum over ``num_items_in_batch`` (Trainer's way to
        average over accumulated batches).
        """
        if labels is not None and use_cache is None:
            use_cache = False  # a loss needs whole sequences
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithPast(
            loss,
            logits,
            getattr(outputs, CACHE_NAME),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
