"""Small forward passes that tell whether a model can learn to predict the next token, before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exsel.data import PackedData
from exsel.errors import ExselError, explained
from exsel.nn import Temperature
from exsel.training.new_models import new_model
from exsel.training.own_model import OwnModel
from exsel.training.settings import Settings, one_a_variant
from exsel.upgrading.loading import quiet_transformers
from exsel.variants import BASELINE, VARIANTS

# The largest difference of logits that counts as rounding, as a share of the largest logit.
_TOLERANCE = 1e-4


def check_new_models(runs: Sequence[Settings], data: PackedData) -> None:
    """Build the model of each variant and check it; exsel's own decoder needs no check.

    Models of one seed must have the same weights, and share none.
    """
    first, vocab_size = runs[0], data.description.vocab_size
    if first.source is not None or first.is_decoder:
        return
    for run in one_a_variant(runs):
        check_model(new_model(run, vocab_size, data.tokenizer), run, vocab_size)
    plain = replace(first, variant=VARIANTS[BASELINE])
    one, other = (new_model(plain, vocab_size, data.tokenizer).state_dict() for _ in range(2))
    for name, weights in one.items():
        if weights.data_ptr() == other[name].data_ptr() != 0:
            raise ExselError(f"--model {first.model_name} hands out the same weights twice ({name}): build a new model")
        if not torch.equal(weights, other[name]):
            raise ExselError(
                f"--model {first.model_name} has different weights at the same seed ({name}), so that variants could "
                "not be compared: draw them with torch's own random numbers, without a generator"
            )


def check_model(model: Any, settings: Settings, vocab_size: int) -> None:
    """Check, by a few small forward passes, that a model with all its weights on the CPU can learn from the data.

    Raises:
        ExselError: the vocabulary is smaller than the tokenizer's, the logits are not numbers, or tokens attend to
            later ones, or with ``--pack isolate`` to other documents.
    """
    where = f"--model {settings.model_name}" if settings.source is None else f"--from {settings.source}"
    rows = vocab_size if isinstance(model, OwnModel) else model.get_input_embeddings().weight.shape[0]
    if vocab_size > rows:
        raise ExselError(
            f"{where}: its tokenizer has ids up to {vocab_size - 1} and the model only {rows} embeddings: "
            "they do not belong together"
        )
    half = max(1, min(32, settings.seq_len) // 2)
    tokens = (torch.arange(2 * half) * 7 + 3).remainder(rows).unsqueeze(0)
    tokens[0, -1] = rows - 1
    was_training = model.training
    model.eval()
    with torch.no_grad(), explained(f"the model of {where} cannot be used"), quiet_transformers():
        logits = _logits(model, tokens)
        later = torch.cat((tokens[:, :half], (tokens[:, half:] + 1).remainder(rows)), dim=1)
        is_causal = _close(logits[:, :half], _logits(model, later)[:, :half])
        is_isolated = settings.pack != "isolate" or _isolates(model, tokens)
        if isinstance(model, OwnModel):
            model.check_loss(tokens)
    model.train(was_training)
    if logits.shape[-1] < vocab_size:
        raise ExselError(f"{where}: it gives {logits.shape[-1]} logits, and the tokenizer has {vocab_size} tokens")
    if not logits.isfinite().all():
        raise ExselError(f"{where}: the model gives logits that are no numbers: its weights are of no use")
    name = type(model.module if isinstance(model, OwnModel) else model).__name__
    if not is_causal:  # an encoder with a language model head would copy the token that it should predict
        raise ExselError(
            f"{where}: in this {name} tokens see those after them, so that predicting the next one would mean nothing"
        )
    if not is_isolated:
        raise ExselError(f"{where}: {name} does not keep documents apart by their positions: use --pack concat")


def _isolates(model: Any, tokens: Tensor) -> bool:
    """Whether a document has the same logits after another one as alone: attention, positions, temperatures."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    half = tokens.shape[1] // 2
    positions = torch.arange(half).repeat(2).unsqueeze(0)
    # With a = 0, where τ grows fast with n, in every temperature, a wrongly counted position changes the logits.
    temperatures = [module for module in model.modules() if isinstance(module, Temperature)]
    logits = [module.position_logit for module in temperatures if module.position_logit is not None]
    values = [logit.clone() for logit in logits]
    try:
        for logit in logits:
            logit.zero_()
        together = _logits(model, tokens, position_ids=positions)[:, half:]
        return _close(together, _logits(model, tokens[:, half:], position_ids=positions[:, half:]))
    finally:
        for logit, value in zip(logits, values, strict=True):
            logit.copy_(value)


def _logits(model: Any, tokens: Tensor, **inputs: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens, use_cache=False, **inputs).logits
    return logits


def _close(logits: Tensor, others: Tensor) -> bool:
    return bool((logits - others).abs().max() <= _TOLERANCE * others.abs().max())
