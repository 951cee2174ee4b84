"""A small configuration of any transformers model type: its defaults with every size capped by the field's name."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from evidence.survey.zoo_table import COMPOSITES, OVERRIDES, Overrides

# Token ids: ordinary tokens lie in [FIRST_TOKEN, LAST_TOKEN), every special one that lay above is moved behind them.
VOCAB_SIZE = 160
FIRST_TOKEN, LAST_TOKEN = 10, 100
HEADS = 4

# The first pattern that matches a whole field name gives its cap; None leaves the field alone.
_CAPS: tuple[tuple[str, int | None], ...] = (
    (r".*(num_labels|num_channels|_divisible_by|rate|ratio|temperature|base|theta|alpha|bias_max)", None),
    (r"(num_|n_)?(kv|key_value)(_attention)?_heads|.*_(kv|key_value)_heads?", 2),
    (r".*(token_id|token_index|ignore_index|_id)", None),
    (r"qk_head_dim", None),
    (r".*(head_dim|d_head|d_kv|kv_channels|dim_head|headdim|head_size)", 16),
    (r"num_feat_extract_layers|stem_channels?", None),
    (r".*heads?", HEADS),
    (r"codebook_size", 128),
    (r".*vocab(_size)?.*|n_codes_total", VOCAB_SIZE),
    (r".*(layers|n_layer|depth|num_blocks)", 2),
    (r"(q|kv|o)_lora_rank", 32),
    (r".*(num|routed|local)_experts|num_experts", 4),
    (r".*(experts_per_tok|experts_per_token|moe_k|moe_topk|expert_top_k)", 2),
    (r"n_group|topk_group", 1),
    (r".*(ffn|ffn_dim|intermediate_size|intermediate_dim|mlp_dim|mlp_hidden_size|feed_?forward.*|linear_units)", 96),
    (r"d_ff|d_inner|dff", 96),
    (r".*(hidden_size(_per_layer_input)?|hidden_dim|d_model|embd|(emb|embed|embedding)_(dim|size))", 64),
    (r".*(project(ion)?_dim|output_dim|proj_size|proj_dim|latent_dim|codebook_dim|codevector_dim|conv_dim)", 64),
    (r"lru_width|dim|hidden_size.*|.*_hidden_sizes?|.*(latent_size|state_size|d_state|channels|width)", 64),
    (r"sliding_window|sliding_window_size|attention_chunk_size|local_attention|attention_window(_size)?", 4),
    (r".*(position_embeddings|n_positions|n_ctx|context_length|max_.*positions|max_seq_len)", 128),
    (r"num_queries|.*num_latents|num_query_tokens|num_image_tokens", 5),
    (r".*hidden_dimension", 64),
    (r"num_pos_feats", 32),
    (r"upsample_groups|num_filters", 4),
    (r"image_size|img_size|image_size_.*", 48),
    (r"patch_size", 8),
)
_COMPILED = tuple((re.compile(pattern), cap) for pattern, cap in _CAPS)

# Lists with one entry a layer, by what they count as the number of layers.
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "depth")
_MAX_KINDS = 4


def small_config(model_type: str) -> PretrainedConfig:
    """The configuration of a small model of one type.

    Args:
        model_type: a key of transformers' ``CONFIG_MAPPING``

    Raises:
        Whatever transformers raises for a type that has no default configuration or refuses the small one.
    """
    if model_type in COMPOSITES:
        return _composite(model_type, COMPOSITES[model_type])
    config_class: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
    return _shrink(config_class(**_base(model_type)), OVERRIDES.get(model_type, {}))


def _base(model_type: str) -> dict[str, Any]:
    """What has to be given even for the default configuration of a type to exist."""
    base = OVERRIDES.get(model_type, {}).get("__init__", {})
    assert isinstance(base, dict)
    return base


def _composite(model_type: str, parts: Mapping[str, str]) -> PretrainedConfig:
    """The configuration of a type that is made of other types' configurations and has no defaults of its own."""
    config_class: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
    subs = {name: small_config(part) for name, part in parts.items()}
    if {"encoder", "decoder"} <= set(subs):
        return config_class.from_encoder_decoder_configs(subs["encoder"], subs["decoder"])
    return config_class(**{name: sub.to_dict() for name, sub in subs.items()}, **OVERRIDES.get(model_type, {}))


def _shrink(config: PretrainedConfig, overrides: Overrides, *, is_part: bool = False) -> PretrainedConfig:
    """A new configuration like ``config`` with small sizes; ``overrides`` wins over the caps, parts included."""
    keep = _layers_kept(config)
    small: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if isinstance(value, PretrainedConfig):
            part = OVERRIDES.get(value.model_type, {}) | _sub_overrides(overrides, name)
            small[name] = _shrink(value, part, is_part=True)
        elif name in keep.per_layer:
            small[name] = [_capped(name.removesuffix("s"), value[i]) for i in keep.layers]
        elif name == keep.depth:
            small[name] = len(keep.layers)
        elif name == "num_key_value_heads" and "kv_lora_rank" in vars(config):
            small[name] = HEADS  # latent attention has no groups
        else:
            capped = _capped(name, value)
            default = getattr(type(config), name, None)
            # A part's value that is not its class's default was chosen by the whole, even where it is small already.
            if capped != value or (is_part and default is not None and value != default):
                small[name] = capped
    small |= _outputs_kept(config)
    for name, value in overrides.items():
        chosen = vars(config).get(name)
        if name == "__init__" or (isinstance(chosen, PretrainedConfig) and isinstance(value, dict)):
            continue
        small[name] = chosen | value if isinstance(chosen, dict) and isinstance(value, dict) else value
    return type(config)(**_base(config.model_type) | small)


def _sub_overrides(overrides: Overrides, name: str) -> dict[str, Any]:
    part = overrides.get(name, {})
    return dict(part) if isinstance(part, Mapping) else {}


def _outputs_kept(config: PretrainedConfig) -> dict[str, Any]:
    """Where a backbone gives out several stages' features, the small one gives out as many."""
    indices = vars(config).get("_out_indices")
    if not indices or len(indices) < 2:
        return {}
    if (
        "num_hidden_layers" in vars(config)
        and "depths" not in vars(config)
        and "stage_out_channels" not in vars(config)
    ):
        return {"num_hidden_layers": len(indices), "out_indices": list(range(1, len(indices) + 1))}
    features = vars(config).get("_out_features")
    return {} if features is None else {"out_features": features}


class _Kept:
    """The layers of a default configuration that its small version keeps: one of each kind."""

    def __init__(self, depth: str | None = None, layers: tuple[int, ...] = (), per_layer: frozenset[str] = frozenset()):
        self.depth, self.layers, self.per_layer = depth, layers, per_layer


def _layers_kept(config: PretrainedConfig) -> _Kept:
    """Where a configuration lists its layers' kinds: one layer of each kind, at least two layers."""
    values = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    for depth in _DEPTHS:
        count = values.get(depth)
        if not isinstance(count, int) or count < 2:
            continue
        lists = sorted(
            k for k, v in values.items() if isinstance(v, (list, tuple)) and len(v) == count and "layer" in k
        )
        if not lists:
            continue
        kinds: dict[str, int] = {}
        for layer in range(count):
            kinds.setdefault(repr([values[k][layer] for k in lists]), layer)
        layers = sorted(kinds.values())[:_MAX_KINDS]
        if len(layers) == 1:
            layers.append(count - 1)
        return _Kept(depth, tuple(layers), frozenset(lists))
    return _Kept()


def _capped(name: str, value: Any) -> Any:
    """A field's value, made small according to the field's name."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, int) for item in value):
            singular = name.removesuffix("s")
            known = any(pattern.fullmatch(singular) for pattern, _ in _COMPILED)
            return type(value)(_capped(singular if known else name, item) for item in value)
        return value
    if isinstance(value, dict):
        return _small_rope(value)
    if not isinstance(value, int) or value < 2:
        return value
    if name == "vocab_size":  # small ones too: the inputs' tokens and the special ones must be in it
        return VOCAB_SIZE
    if re.fullmatch(r".*token(_id|_index)|.*_token_ids|pad_id|bos_id|eos_id", name):
        return _token(value)
    for pattern, cap in _COMPILED:
        if pattern.fullmatch(name):
            if cap == HEADS and "head" in name and value > 2:  # 3, 6, 12 … do not divide the capped widths
                return HEADS
            return value if cap is None else min(value, cap)
    return value


def _token(value: int) -> int:
    """A special token's id: distinct ones stay distinct (as far as 58 ids go), and outside of the ordinary tokens."""
    return value if value < FIRST_TOKEN else LAST_TOKEN + value % (VOCAB_SIZE - LAST_TOKEN - 1)


def _small_rope(value: dict[Any, Any]) -> dict[Any, Any]:
    """Rotary parameters whose sections fit a head of 16: temporal, height and width share its 8 frequencies."""
    if "mrope_section" in value:
        return value | {"mrope_section": [2, 3, 3]}
    return value
