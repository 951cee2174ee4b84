"""A new model with a variant's mechanisms: of exsel's own decoder, of a transformers configuration, or of one's own.

The decoder has the mechanisms in its code. Any other model is built plain and upgraded. So the weights that variants
share are equal at equal seeds.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from exsel.errors import ExselError, explained
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.training.own_model import OwnModel, call_factory
from exsel.training.saved_models import check_causal, read_config
from exsel.training.settings import Settings
from exsel.upgrading import upgrade
from exsel.variants import BASELINE

# The fields of a model's configuration that define what it computes.
_MODEL_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "norm", "norm_eps", "mlp", "embedding_norm"),
    *("qk_norm", "sliding_window", "layer_types", "rope_parameters", "attention_dropout", "initializer_range"),
    "tie_word_embeddings",
)


def new_model(settings: Settings, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    """A run's model with new weights, in float32, on the default device; it names the tokenizer's special tokens."""
    set_seed(settings.seed)
    if settings.is_decoder:
        own = settings.model_config(vocab_size, tokenizer and tokenizer.eos_token_id)
        if tokenizer is not None:
            own.pad_token_id, own.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
        with explained(f"--model {settings.model_name} cannot be built"):
            decoder = ExselForCausalLM(own)
        if settings.variant.kind != BASELINE:
            # An MLP temperature draws random weights, which must not change those of the layers after it.
            plain = type(own).from_dict({**own.to_dict(), "exclusive": None, "selective": None})
            set_seed(settings.seed)
            decoder.load_state_dict(ExselForCausalLM(plain).state_dict(), strict=False)
        return decoder
    factory = settings.factory
    with explained(f"--model {settings.model_name} cannot be {settings.variant.name}"):
        if factory is None:
            config = _transformers_config(settings, vocab_size, tokenizer)
            model: nn.Module = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
            return _upgraded(model.float(), settings)
        module = call_factory(factory, vocab_size=vocab_size, seq_len=settings.seq_len)
        description = {
            "model": settings.model_name,
            "vocab_size": vocab_size,
            "seq_len": settings.seq_len,
            **settings.variant.to_dict(),
        }
        return OwnModel(_upgraded(module, settings), description)


def _upgraded(model: nn.Module, settings: Settings) -> nn.Module:
    return model if settings.variant.kind == BASELINE else upgrade(model, **settings.variant.mechanisms)


def model_facts(settings: Settings, vocab_size: int) -> dict[str, Any]:
    """What a model's configuration says of it, as JSON types; of one's own function, nothing."""
    if settings.source is not None:
        config: Any = read_config(settings.source)
    elif settings.is_decoder:
        config = settings.model_config(vocab_size, None)
    elif settings.factory is None:
        config = _transformers_config(settings, vocab_size, None)
    else:
        return {}
    values = config.to_dict()
    kind = {} if config.model_type == ExselConfig.model_type else {"type": config.model_type}
    return kind | {name: values[name] for name in _MODEL_FIELDS if name in values}


def _transformers_config(settings: Settings, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    values = dict(settings.config_values)
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ExselError(f"transformers knows no model of type {kind!r}")
    if values.get("quantization_config") is not None:
        raise ExselError("a quantised model has no weights that could be trained: leave out quantization_config")
    config = CONFIG_MAPPING[kind].from_dict(deepcopy(values)).get_text_config(decoder=True)
    check_causal(config)
    tokens = {
        f"{name}_token_id": tokenizer and getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")
    }
    for name, value in {"vocab_size": vocab_size, **tokens, "max_position_embeddings": settings.seq_len}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config
