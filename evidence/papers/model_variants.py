"""What is trained side by side: the library's own mechanisms, and what else is put into its model to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from evidence.papers import additions
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.models import ExselForCausalLM
from exsel.variants import Variant


@dataclass(frozen=True, kw_only=True)
class ModelVariant(Variant):
    """One way to build the model.

    Args:
        name: lower-case words with hyphens, and different for different variants.
        label: in tables and charts.
        addition: puts something else into a model that is built; ``None``: nothing.
    """

    label: str
    addition: Callable[[ExselForCausalLM], None] | None = None

    def with_exclusive(self) -> ModelVariant:
        """The same with exclusive attention in all layers."""
        return replace(
            self, name=f"{self.name}-exclusive", label=f"{self.label} + exclusive", exclusive=ExclusiveConfig()
        )


BASELINE = ModelVariant(name="baseline", label="baseline")
EXCLUSIVE = ModelVariant(name="exclusive", label="exclusive", exclusive=ExclusiveConfig())
SELECTIVE = ModelVariant(name="selective", label="selective", selective=SelectiveConfig())
BOTH = ModelVariant(
    name="exclusive-selective",
    label="exclusive + selective",
    exclusive=ExclusiveConfig(),
    selective=SelectiveConfig(),
)

# From γ = 0 a strength would not come far in some hundred steps at a lower rate: the best of 1e-3, 1e-2 and 3e-2.
LEARNED_STRENGTH = ModelVariant(
    name="learned-strength",
    label="learned strength",
    exclusive=ExclusiveConfig(strength="learned"),
    token_learning_rate=3e-2,
)


def exclusive_in(layers: str, label: str) -> ModelVariant:
    """Exclusive attention in some layers, as :class:`exsel.ExclusiveConfig` names them."""
    return ModelVariant(
        name=f"exclusive-{layers.replace(':', '-')}", label=label, exclusive=ExclusiveConfig(layers=layers)
    )


def _selective(name: str, label: str, **changes: Any) -> ModelVariant:
    return ModelVariant(name=f"selective-{name}", label=label, selective=SelectiveConfig(**changes))


QUERIES = _selective("queries", "queries alone", value=False)
VALUES = _selective("values", "values alone", query=False)
KEYS = _selective("keys", "keys alone", query=False, value=False, key=True)
QUERIES_KEYS_VALUES = _selective("queries-keys-values", "queries, keys and values", key=True)
TOKEN = _selective("token", "token term alone", position=False, value_position=False)
POSITION = _selective("position", "position term alone", token="none")
MLP = _selective("mlp", "f with weights of its own", token="mlp")
FREQUENCY = _selective("frequency", "f of the frequency", token="frequency")


def sinks(count: int) -> ModelVariant:
    """Learned attention sinks."""
    label = "1 sink" if count == 1 else f"{count} sinks"
    return ModelVariant(
        name=f"sinks-{count}", label=label, addition=functools.partial(additions.add_sinks, count=count)
    )


MASKED_DIAGONAL = ModelVariant(name="masked-diagonal", label="masked diagonal", addition=additions.mask_diagonal)
OUTPUT_GATE = ModelVariant(name="output-gate", label="output gate", addition=additions.add_output_gate)
COMMON_DIRECTION = ModelVariant(
    name="common-direction", label="common direction removed", addition=additions.remove_common_direction
)
FULL_WIDTH = ModelVariant(
    name="full-width", label="projection over the full width", addition=additions.exclude_full_width
)
TOKEN_STRENGTH = ModelVariant(
    name="token-strength", label="strength of each token", addition=additions.add_token_strength
)
ZERO_OUTPUT = ModelVariant(name="zero-output", label="zero output", addition=additions.zero_output_projections)
CONSTANT = ModelVariant(
    name="constant-temperature", label="constant temperature", addition=additions.add_constant_temperature
)
SCALABLE_SOFTMAX = ModelVariant(
    name="scalable-softmax", label="Scalable-Softmax", addition=additions.add_scalable_softmax
)
YARN = ModelVariant(name="yarn", label="YaRN's temperature", addition=additions.add_yarn_temperature)
