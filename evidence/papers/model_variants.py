"""What is trained side by side: the library's own mechanisms, and what else is put into its model to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from evidence.papers import additions
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.models import ExselForCausalLM


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to build the model.

    Args:
        name: in the names of folders; lower-case words with hyphens, and different for different variants.
        label: in tables and charts.
        exclusive, selective: the library's mechanisms; ``None``: without.
        addition: puts something else into a model that is built; ``None``: nothing.
        scalars_learning_rate: of the scalars that the mechanisms learn for each head, which the baseline does not have.
    """

    name: str
    label: str
    exclusive: ExclusiveConfig | None = None
    selective: SelectiveConfig | None = None
    addition: Callable[[ExselForCausalLM], None] | None = None
    scalars_learning_rate: float = 1e-3

    @property
    def mechanisms(self) -> str:
        """The library's mechanisms of it, a name of :data:`exsel.variants.VARIANTS`."""
        named = {"exclusive": self.exclusive, "selective": self.selective}
        return "+".join(name for name, config in named.items() if config is not None) or "baseline"

    def with_exclusive(self) -> Variant:
        """The same with exclusive attention in all layers."""
        return replace(
            self, name=f"{self.name}-exclusive", label=f"{self.label} + exclusive", exclusive=ExclusiveConfig()
        )


BASELINE = Variant(name="baseline", label="baseline")
EXCLUSIVE = Variant(name="exclusive", label="exclusive", exclusive=ExclusiveConfig())
SELECTIVE = Variant(name="selective", label="selective", selective=SelectiveConfig())
BOTH = Variant(
    name="exclusive-selective",
    label="exclusive + selective",
    exclusive=ExclusiveConfig(),
    selective=SelectiveConfig(),
)

# From γ = 0 a strength would not come far in some hundred steps at a lower rate: the best of 1e-3, 1e-2 and 3e-2.
LEARNED_STRENGTH = Variant(
    name="learned-strength",
    label="learned strength",
    exclusive=ExclusiveConfig(strength="learned"),
    scalars_learning_rate=3e-2,
)


def exclusive_in(layers: str, label: str) -> Variant:
    """Exclusive attention in some layers, as :class:`exsel.ExclusiveConfig` names them."""
    return Variant(name=f"exclusive-{layers.replace(':', '-')}", label=label, exclusive=ExclusiveConfig(layers=layers))


def _selective(name: str, label: str, **changes: Any) -> Variant:
    return Variant(name=f"selective-{name}", label=label, selective=SelectiveConfig(**changes))


QUERIES = _selective("queries", "queries alone", value=False)
VALUES = _selective("values", "values alone", query=False)
KEYS = _selective("keys", "keys alone", query=False, value=False, key=True)
QUERIES_KEYS_VALUES = _selective("queries-keys-values", "queries, keys and values", key=True)
TOKEN = _selective("token", "token term alone", position=False, value_position=False)
POSITION = _selective("position", "position term alone", token="none")
MLP = _selective("mlp", "f with weights of its own", token="mlp")
FREQUENCY = _selective("frequency", "f of the frequency", token="frequency")


def sinks(count: int) -> Variant:
    """Learned attention sinks."""
    label = "1 sink" if count == 1 else f"{count} sinks"
    return Variant(name=f"sinks-{count}", label=label, addition=functools.partial(additions.add_sinks, count=count))


MASKED_DIAGONAL = Variant(name="masked-diagonal", label="masked diagonal", addition=additions.mask_diagonal)
OUTPUT_GATE = Variant(name="output-gate", label="output gate", addition=additions.add_output_gate)
COMMON_DIRECTION = Variant(
    name="common-direction", label="common direction removed", addition=additions.remove_common_direction
)
CONSTANT = Variant(
    name="constant-temperature", label="constant temperature", addition=additions.add_constant_temperature
)
SCALABLE_SOFTMAX = Variant(name="scalable-softmax", label="Scalable-Softmax", addition=additions.add_scalable_softmax)
YARN = Variant(name="yarn", label="YaRN's temperature", addition=additions.add_yarn_temperature)
