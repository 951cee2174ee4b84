"""What is trained side by side: the library's own mechanisms, and what else is put into its model to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """

    name: str
    label: str
    exclusive: ExclusiveConfig | None = None
    selective: SelectiveConfig | None = None
    addition: Callable[[ExselForCausalLM], None] | None = None

    @property
    def mechanisms(self) -> str:
        """The library's mechanisms of it, a name of :data:`exsel.training.settings.VARIANTS`."""
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
