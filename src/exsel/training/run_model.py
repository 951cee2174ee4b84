"""A run's model: without memory for its weights, with new weights, or an existing one; and its disk space.

An existing model of exsel's own gets its mechanisms through its configuration. Any other is upgraded.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from exsel.data import PackedData, load_data, load_evaluation_data, token_counts
from exsel.errors import ExselError, explained
from exsel.lengths import context_of
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.training.mechanism_parameters import mechanism_names, mechanism_parameters
from exsel.training.model_checks import check_model
from exsel.training.new_models import new_model
from exsel.training.processes import current
from exsel.training.saved_models import load_whole, read_source, source_variant
from exsel.training.settings import Settings
from exsel.upgrading import upgrade
from exsel.upgrading.loading import quiet_transformers
from exsel.variants import BASELINE

#: The number of checkpoints kept during a run. The older one is there in case the newer one is unreadable.
KEPT_CHECKPOINTS = 2
# The number of blocks in which tokens are counted for token="frequency".
_COUNTED_BLOCKS = 10_000


def sketch_model(settings: Settings, vocab_size: int) -> nn.Module:
    """The run's model without memory for its weights, to check that it can be built (and upgraded as it says)."""
    if settings.source is None:
        # How a fused projection of one's own is packed is found by trying it, which takes weights.
        with torch.device("cpu" if settings.factory else "meta"):
            model: nn.Module = new_model(settings, vocab_size)
        return model
    source, variant = settings.source, settings.variant
    config = read_source(source)
    context, has = context_of(config), source_variant(config)
    if context is not None and settings.seq_len > context:
        raise ExselError(f"--seq-len {settings.seq_len} is more than the {context} tokens of --from {source}")
    if has not in (BASELINE, variant.name):
        raise ExselError(
            f"--from {source} is {has} already, and cannot become {variant.name}: leave out --variant to train it "
            "on as it is, or begin with the plain model"
        )
    with explained(f"--from {source} cannot be {variant.name}"), torch.device("meta"), quiet_transformers():
        if isinstance(config, ExselConfig):
            sketch: nn.Module = ExselForCausalLM(_own_config(config, settings))
        else:
            sketch = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
            sketch = sketch if has == variant.kind else upgrade(sketch, **variant.mechanisms)
    if settings.train == "new" and not mechanism_parameters(sketch):
        raise ExselError(
            f"--train new: nothing would train, since --variant {variant.name} as it is here adds no "
            "parameters: use --train all, or --exclusive strength=learned, or a selective variant, or leave this one "
            "out of several"
        )
    return sketch


def build_model(settings: Settings, data: PackedData) -> Any:
    """The run's initial model, in float32. Weights that variants share are equal for equal seeds.

    With ``train="new"`` only the mechanisms' parameters require gradients.
    """
    is_new = settings.source is None
    vocab_size = data.description.vocab_size
    model: Any = new_model(settings, vocab_size, data.tokenizer) if is_new else _load_source(settings)
    inner = getattr(model, "model", None)
    frequency = getattr(inner, "token_log_frequency", None)
    if inner is not None and frequency is not None and frequency.isnan().any():
        count = functools.partial(token_counts, data.train, model.config.vocab_size, max_blocks=_COUNTED_BLOCKS)
        inner.set_token_counts(current().first(count))  # of a stream, each process reads other blocks
    if not is_new:
        check_model(model, settings, vocab_size)
    if settings.train == "new":
        new = mechanism_parameters(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in new)
    return model


def _load_source(settings: Settings) -> Any:
    """The model to fine-tune, with its mechanisms, in float32 on the CPU."""
    model = load_whole(str(settings.source), called=f"--from {settings.source}", dtype=torch.float32)
    set_seed(settings.seed)
    if source_variant(model.config) == settings.variant.kind:
        return model
    if not isinstance(model.config, ExselConfig):
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


def load_run_data(settings: Settings, *, texts: Sequence[str] = (), part: tuple[int, int] = (0, 1)) -> PackedData:
    """The settings' data, or these documents in its place, with their evaluation sets; ``part`` as in `load_data`."""
    data = load_data(
        settings.data,
        tokenizer=settings.tokenizer,
        seq_len=settings.seq_len,
        pack=settings.pack,
        text_field=settings.text_field,
        validation_blocks=settings.evaluation_blocks,
        part=part,
        texts=texts,
    )
    return with_evaluation_sets(data, settings)


def with_evaluation_sets(data: PackedData, settings: Settings) -> PackedData:
    """``data`` with the settings' evaluation sets, packed as it is."""
    sets = {}
    for name, source in settings.evaluation_sets.items():
        with explained(f"--eval {name}={source}"):
            sets[name] = load_evaluation_data(
                source,
                tokenizer=data.tokenizer,
                seq_len=settings.seq_len,
                pack=settings.pack,
                text_field=settings.text_field,
                max_blocks=settings.evaluation_blocks,
            )
    return replace(data, evaluation_sets=sets)


def check_disk(runs: Sequence[Settings], vocab_size: int, folder: Path) -> None:
    """Check that the runs' models and the checkpoints of one run at a time fit on the disk.

    The present content of ``folder``, which is kept or replaced, counts as free.
    """
    weights, checkpoints = zip(*(_sizes(settings, vocab_size) for settings in runs), strict=True)
    # While a checkpoint is written, there is one more than are kept.
    needed = sum(weights) + max(checkpoints) * (KEPT_CHECKPOINTS + 1)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free + held
    if free < needed:
        raise ExselError(
            f"--out {folder} has {free / 2**20:,.0f} MiB free, and the models and checkpoints of this need "
            f"{needed / 2**20:,.0f} MiB: free some disk or choose another folder"
        )


def _sizes(settings: Settings, vocab_size: int) -> tuple[int, int]:
    """Bytes of the weights, and of a checkpoint, which adds the optimizer's two averages of each trained weight."""
    model = sketch_model(settings, vocab_size)
    trained = mechanism_parameters(model).values() if settings.train == "new" else model.parameters()
    weights, averages = (4 * sum(parameter.numel() for parameter in some) for some in (model.parameters(), trained))
    return weights, weights + 2 * averages
