"""Our model with each mechanism, in our form and in the plain one."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from exsel.bench.plain_forms import PlainExclusive, PlainTemperature
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import ExselError
from exsel.models import SIZES, ExselConfig, ExselForCausalLM
from exsel.models.modeling import ExselAttention
from exsel.variants import BASELINE

#: *naive*: the plain forms, around stock attention.
VARIANTS = (BASELINE, "exclusive", "exclusive+selective", "naive exclusive", "naive exclusive+selective")

#: Bytes: small, so that its output layer does not hide what attention costs.
VOCABULARY = 259


def check_sizes(names: Collection[str], flag: str) -> None:
    """Check that each is the name of a size.

    Raises:
        ExselError: one is not.
    """
    for name in names:
        if name not in SIZES:
            raise ExselError(f"{flag} {name}: blocks and models come in the sizes {', '.join(SIZES)}")


def build(variant: str, size: str, *, layers: int | None = None) -> ExselForCausalLM:
    """A model of a named size, of a name of :data:`VARIANTS`; its weights are those of every other variant."""
    values = dict(SIZES[size])
    if layers is not None:
        values["num_hidden_layers"] = layers
    config = ExselConfig(
        vocab_size=VOCABULARY,
        **values,
        exclusive=ExclusiveConfig() if "exclusive" in variant else None,
        selective=SelectiveConfig() if "selective" in variant else None,
    )
    is_plain = variant == BASELINE or variant.startswith("naive")
    if is_plain:
        config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = ExselForCausalLM(config)
    if is_plain:
        for layer in model.model.layers:
            _use_plain_forms(layer)
    return model


def _use_plain_forms(layer: nn.Module) -> None:
    attention = layer.get_submodule("self_attn")
    assert isinstance(attention, ExselAttention)
    if attention.exclusive is not None:
        attention.exclusive = PlainExclusive()  # type: ignore[assignment]
    for name, temperature in attention.temperatures.items():
        heads = temperature.num_heads
        assert isinstance(heads, int)
        attention.temperatures[name] = PlainTemperature(heads, attention.head_dim)


def parameter_count(size: str) -> int:
    """Of the layers of a size, to a thousandth."""
    values = SIZES[size]
    width, heads = values["hidden_size"], values["num_attention_heads"] * values["head_dim"]
    count: int = values["num_hidden_layers"] * (4 * width * heads + 8 * width * width)
    return count
