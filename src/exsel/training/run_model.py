"""A run's model: on paper, with new weights, or one that exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import set_seed

from exsel.data import PackedData, token_counts
from exsel.errors import ExselError, explained
from exsel.models import ExselForCausalLM
from exsel.training import finetuning
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.settings import Settings

# Blocks in which the tokens are counted for token="frequency".
_COUNTED_BLOCKS = 10_000


def sketch_model(settings: Settings, vocab_size: int) -> nn.Module:
    """The run's model without memory for its weights: what it will be, and whether it can be.

    Args:
        settings: of the run.
        vocab_size: of its data; a model that exists has its own.

    Raises:
        ExselError: it cannot be built, or not be upgraded as the settings say.
    """
    if settings.source is not None:
        sketch = finetuning.sketch_source(settings)
        if settings.train == "new" and not mechanism_parameters(sketch):
            raise ExselError(
                f"--train new: nothing would train, since --variant {settings.variant} as it is here adds no "
                "parameters; use --train all, or --exclusive strength=learned, or a selective variant"
            )
        return sketch
    config = settings.model_config(vocab_size, None)
    with explained(f"--model {settings.model} cannot be built"), torch.device("meta"):
        return ExselForCausalLM(config)


def build_model(settings: Settings, data: PackedData) -> Any:
    """The run's model as it begins, in float32: weights that variants share are the same for the same seed.

    With ``train="new"`` only the mechanisms' parameters require gradients.

    Raises:
        ExselError: a model that exists and cannot be fine-tuned so.
    """
    is_new = settings.source is None
    model: Any = _new_model(settings, data) if is_new else finetuning.load_source(settings)
    inner = getattr(model, "model", None)
    frequency = getattr(inner, "token_log_frequency", None)
    if inner is not None and frequency is not None and frequency.isnan().any():
        inner.set_token_counts(token_counts(data.train, model.config.vocab_size, max_blocks=_COUNTED_BLOCKS))
    if not is_new:
        finetuning.check_source(model, settings, data.description.vocab_size)
    if settings.train == "new":
        new = mechanism_parameters(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in new)
    return model


def _new_model(settings: Settings, data: PackedData) -> ExselForCausalLM:
    config = settings.model_config(data.description.vocab_size, data.tokenizer.eos_token_id)
    config.pad_token_id = data.tokenizer.pad_token_id
    config.bos_token_id = data.tokenizer.bos_token_id
    set_seed(settings.seed)
    model = ExselForCausalLM(config)
    if config.exclusive is not None or config.selective is not None:
        # An MLP temperature draws weights of its own, which must not shift those of the layers after it.
        plain = type(config).from_dict({**config.to_dict(), "exclusive": None, "selective": None})
        set_seed(settings.seed)
        model.load_state_dict(ExselForCausalLM(plain).state_dict(), strict=False)
    return model
