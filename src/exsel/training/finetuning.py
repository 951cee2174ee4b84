"""Begin a run with an existing model: read, check and load it, and insert the mechanisms.

A model of exsel's own gets them through its configuration, since its modelling code has them. Any other is upgraded.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from exsel.errors import ExselError, explained
from exsel.lengths import context_of
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.nn import Temperature
from exsel.training.mechanism_parameters import mechanism_names
from exsel.training.saved_models import load_whole, read_config
from exsel.training.settings import Settings
from exsel.upgrading import upgrade
from exsel.upgrading.loading import quiet_transformers
from exsel.upgrading.transformers_models import UpgradedFields
from exsel.variants import BASELINE

# The largest difference of logits that counts as rounding, as a share of the largest logit.
_TOLERANCE = 1e-4


def read_source(source: str) -> Any:
    """The configuration of the model to fine-tune.

    Args:
        source: a folder that holds a saved model, or a name on the Hugging Face hub.

    Raises:
        ExselError: there is none, it is unreadable, or it is of a model that cannot be trained here.
    """
    config = read_config(source, f"--from {source}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ExselError(f"--from {source}: a {config.model_type} model is no causal language model, which is needed")
    if getattr(config, "quantization_config", None) is not None:
        raise ExselError(f"--from {source}: its weights are quantised: train the original, or an adapter of exsel.peft")
    return config


def source_variant(config: Any) -> str:
    """The variant of a saved model, a name in :data:`exsel.variants.VARIANTS`."""
    if isinstance(config, UpgradedFields):
        has = {name for entry in config.exsel["upgrades"] for name in ("exclusive", "selective") if entry[name]}
    else:
        has = {name for name in ("exclusive", "selective") if getattr(config, name, None) is not None}
    return "+".join(sorted(has)) or BASELINE


def sketch_source(settings: Settings) -> nn.Module:
    """The model of a fine-tuning run, without memory for its weights.

    Raises:
        ExselError: it cannot be built here, or not be upgraded as the settings say.
    """
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
    """The model to fine-tune, with its mechanisms, in float32 on the CPU.

    Raises:
        ExselError: weights that are damaged or incomplete.
    """
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


def check_source(model: Any, settings: Settings, vocab_size: int) -> None:
    """Check, by a few small forward passes, that a loaded model can learn from the data.

    Args:
        model: with all its weights, on the CPU.
        settings: of the run.
        vocab_size: of the data.

    Raises:
        ExselError: the vocabulary is smaller than the tokenizer's, the logits are not numbers, or tokens attend to
            later ones, or with ``--pack isolate`` to other documents.
    """
    source = str(settings.source)
    rows = model.get_input_embeddings().weight.shape[0]
    if vocab_size > rows:
        raise ExselError(
            f"--from {source}: its tokenizer has ids up to {vocab_size - 1} and the model only {rows} embeddings: "
            "they do not belong together"
        )
    tokens = (torch.arange(32) * 7 + 3).remainder(rows).unsqueeze(0)
    was_training = model.training
    model.eval()
    with torch.no_grad(), explained("the model of --from cannot be used"):
        logits = _logits(model, tokens)
        later = torch.cat((tokens[:, :16], (tokens[:, 16:] + 1).remainder(rows)), dim=1)
        is_causal = _close(logits[:, :16], _logits(model, later)[:, :16])
        is_isolated = settings.pack != "isolate" or _isolates(model, tokens)
    model.train(was_training)
    if not logits.isfinite().all():
        raise ExselError(f"--from {source}: the model gives logits that are no numbers: its weights are of no use")
    if not is_causal:  # an encoder with a language model head would copy the token that it should predict
        raise ExselError(
            f"--from {source}: in this {type(model).__name__} tokens see those after them, so that predicting the "
            "next one would mean nothing"
        )
    if not is_isolated:
        raise ExselError(
            f"--from {source}: {type(model).__name__} does not keep documents apart by their positions: "
            "use --pack concat"
        )


def _isolates(model: Any, tokens: Tensor) -> bool:
    """Whether a document has the same logits after another one as alone: attention, positions, temperatures."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    positions = torch.arange(16).repeat(2).unsqueeze(0)
    # With σ(a) = 0.5 in every temperature, a wrongly counted position changes the logits.
    temperatures = [module for module in model.modules() if isinstance(module, Temperature)]
    logits = [module.position_logit for module in temperatures if module.position_logit is not None]
    values = [logit.clone() for logit in logits]
    try:
        for logit in logits:
            logit.zero_()
        together = _logits(model, tokens, position_ids=positions)[:, 16:]
        return _close(together, _logits(model, tokens[:, 16:], position_ids=positions[:, 16:]))
    finally:
        for logit, value in zip(logits, values, strict=True):
            logit.copy_(value)


def _logits(model: Any, tokens: Tensor, **inputs: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens, use_cache=False, **inputs).logits
    return logits


def _close(logits: Tensor, others: Tensor) -> bool:
    return bool((logits - others).abs().max() <= _TOLERANCE * others.abs().max())
