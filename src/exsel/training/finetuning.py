"""Begin a run with an existing model: read, check and load it, and insert the mechanisms.

A model of exsel's own gets them through its configuration, since its modelling code has them. Any other is upgraded.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from exsel.errors import ExselError, explained
from exsel.lengths import context_of
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.training.mechanism_parameters import mechanism_names
from exsel.training.new_models import check_causal
from exsel.training.saved_models import load_whole, read_config
from exsel.training.settings import Settings
from exsel.upgrading import upgrade
from exsel.upgrading.loading import quiet_transformers
from exsel.upgrading.transformers_models import UpgradedFields
from exsel.variants import BASELINE, kind_of


def read_source(source: str) -> Any:
    """The configuration of the model to fine-tune, in a folder or on the hub."""
    config = read_config(source, f"--from {source}")
    with explained(f"--from {source}"):
        check_causal(config)
    if getattr(config, "quantization_config", None) is not None:
        raise ExselError(f"--from {source}: its weights are quantised: train the original, or an adapter of exsel.peft")
    return config


def source_variant(config: Any) -> str:
    """The variant of a saved model, a name in :data:`exsel.variants.VARIANTS`."""
    if isinstance(config, UpgradedFields):
        has = {name for entry in config.exsel["upgrades"] for name in ("exclusive", "selective") if entry[name]}
    else:
        has = {name for name in ("exclusive", "selective") if getattr(config, name, None) is not None}
    return kind_of(has)


def sketch_source(settings: Settings) -> nn.Module:
    """The model of a fine-tuning run, without memory for its weights."""
    source, config = settings.source, read_source(str(settings.source))
    context = context_of(config)
    if context is not None and settings.seq_len > context:
        raise ExselError(f"--seq-len {settings.seq_len} is more than the {context} tokens of --from {source}")
    has = source_variant(config)
    variant = settings.variant.name
    if has not in (BASELINE, variant):
        raise ExselError(
            f"--from {source} is {has} already, and cannot become {variant}: leave out --variant to train it "
            "on as it is, or begin with the plain model"
        )
    with explained(f"--from {source} cannot be {variant}"), torch.device("meta"), quiet_transformers():
        if isinstance(config, ExselConfig):
            return ExselForCausalLM(_own_config(config, settings))
        model: nn.Module = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
        return model if has == settings.variant.kind else upgrade(model, **settings.variant.mechanisms)


def load_source(settings: Settings) -> Any:
    """The model to fine-tune, with its mechanisms, in float32 on the CPU."""
    source = str(settings.source)
    config = read_source(source)
    model = load_whole(source, called=f"--from {source}", dtype=torch.float32)
    set_seed(settings.seed)
    if source_variant(config) == settings.variant.kind:
        return model
    if not isinstance(config, ExselConfig):
        return upgrade(model, **settings.variant.mechanisms)
    own = ExselForCausalLM(_own_config(model.config, settings))
    loading = own.load_state_dict(model.state_dict(), strict=False)
    assert mechanism_names(own).issuperset(loading.missing_keys), loading.missing_keys
    assert not loading.unexpected_keys, loading.unexpected_keys
    return own


def _own_config(config: ExselConfig, settings: Settings) -> ExselConfig:
    """The configuration with the settings' mechanisms, if it has none of its own."""
    if source_variant(config) == settings.variant.kind:
        return config
    mechanisms = {name: value for name, value in settings.variant.to_dict().items() if value is not None}
    own: ExselConfig = ExselConfig.from_dict({**deepcopy(config).to_dict(), **mechanisms})
    return own
