"""The mechanisms of an upgraded attention layer: a module beside its projections, and its forward passes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import UpgradeError
from exsel.nn.exclusive import Exclusive
from exsel.nn.mechanism_pass import ACROSS, ExclusivePass, MechanismPass
from exsel.nn.positions import Positions
from exsel.nn.projections import PACKINGS, Geometry, Projections
from exsel.nn.temperature import Temperature, build_temperatures


class Mechanisms(nn.Module):
    """The mechanisms of one attention layer: their parameters, and how the layer's projections are read.

    Args:
        geometry: the layer's heads; ``None``: not known, which is enough for a strength that is not learned.
        exclusive, selective: the mechanisms.
        projections: the layer's. If it writes its attention out, temperatures are applied right after the projections;
            otherwise before the cache and before attention.
        hidden_size: width of the layer's input, for ``token="mlp"`` and ``"linear"``.
        layer_index: the layer's index in a cache.
        has_window: whether tokens see only some of those before them.
    """

    def __init__(
        self,
        geometry: Geometry | None,
        exclusive: ExclusiveConfig | None,
        selective: SelectiveConfig | None,
        projections: Projections,
        *,
        hidden_size: int,
        layer_index: int | None = None,
        has_window: bool = False,
    ) -> None:
        super().__init__()
        if selective is not None and selective.token == "frequency":
            raise UpgradeError("token='frequency' needs each token's frequency, which a model's layers do not get")
        self.exclusive_config, self.selective_config = exclusive, selective
        self.geometry = geometry
        self.projections = projections
        self.writes_out = projections.output is not None
        self.hidden_size = hidden_size
        self.layer_index = layer_index
        self.has_window = has_window
        self.exclusive = None
        if exclusive is not None:
            self.exclusive = Exclusive(0 if geometry is None else geometry.num_heads, exclusive.strength)
        self.temperatures = build_temperatures(selective, geometry, hidden_size)
        #: What is read of the projections; and those of which something is: the others are only called.
        self.kinds = set(self.temperatures)
        if self.writes_out:
            self.kinds.add("value")
        temperatures = [part for part in self.temperatures.values() if isinstance(part, Temperature)]
        if any(temperature.reads_input for temperature in temperatures):
            self.kinds.add("query")  # for the layer's input
        self.reads = {
            name: packing
            for name, packing in projections.packings.items()
            if geometry
            and not self.kinds.isdisjoint(PACKINGS[packing].slots(geometry.num_heads, geometry.num_kv_heads))
        }
        self.needs_position = any(temperature.position_logit is not None for temperature in temperatures)

    def begin(
        self,
        position_ids: Tensor | None = None,
        cache: Any = None,
        context: Tensor | None = None,
        layer_index: int | None = None,
        attention_mask: Any = None,
    ) -> ExclusivePass:
        """One forward pass. What tells positions is as :class:`Positions` takes it.

        Where one module is several layers of a cache, ``layer_index`` is of the one that is called. ``context``, other
        tokens to attend to, is a RuntimeError: such a call is not self-attention.
        """
        if context is not None:
            raise RuntimeError(ACROSS)
        if not self.kinds:
            return ExclusivePass(self._modules.get("exclusive"), self.geometry)  # type: ignore[arg-type]
        if not self.needs_position:
            return UpgradedPass(self)
        index = 0
        if cache is not None:  # without a cache no layer depends on its index, so that one compiled graph serves all
            index = (layer_index if layer_index is not None else self.layer_index) or 0
        return UpgradedPass(self, Positions(position_ids, attention_mask, cache, index, self.has_window))


class UpgradedPass(MechanismPass):
    """One forward pass of an upgraded layer: what its temperatures read is taken from its packed projections."""

    def __init__(self, mechanisms: Mechanisms, positions: Positions | None = None) -> None:
        modules: dict[str, Any] = mechanisms._modules  # their attributes take longer to look up, at every token
        super().__init__(modules.get("exclusive"), modules["temperatures"], geometry=mechanisms.geometry)
        self.mechanisms = mechanisms
        self.positions = positions
        self.reads = mechanisms.reads
        self.projected: set[str] = set()

    def read(self, name: str, hidden_states: Tensor, packed: Tensor) -> Tensor:
        """Keep what temperatures read. Return ``packed``, scaled if the layer writes its attention out."""
        mechanisms, geometry = self.mechanisms, self.mechanisms.geometry
        packed_as = self.reads.get(name)
        if packed_as is None:  # a layer whose projections vLLM has merged calls this of each
            return packed
        if name in self.projected:
            if mechanisms.projections.reused:
                return packed
            raise RuntimeError(
                f"an upgraded layer called its {name} twice: which of the two is its tokens' is not known"
            )
        self.projected.add(name)
        assert geometry is not None
        packing = PACKINGS[packed_as]
        parts = packing.split(packed, geometry, mechanisms.kinds)
        self.features.update(parts)
        if "query" in parts or mechanisms.writes_out:
            self.hidden_states = hidden_states
        if not mechanisms.writes_out:
            return packed
        tau: dict[str, Tensor] = {}
        for kind, part in parts.items():
            # Vision models may arrange their tokens in two dimensions, and there may be no batch dimension.
            heads_first = (part.flatten(1, -3) if part.ndim > 3 else part.unsqueeze(0)).transpose(1, 2)
            if kind == "value":
                self.own_value = heads_first
            if kind in self.temperatures:
                tau[kind] = self.tau(kind, heads_first).transpose(-2, -1).reshape(part.shape[:-1])
        return packing.scale(packed, tau, geometry) if tau else packed

    def places(self, features: Tensor) -> Tensor | None:
        """n of the tokens; computed at the first call."""
        num_tokens = features.shape[-2]
        if self.positions is not None and (self.position is None or self.position.shape[-1] != num_tokens):
            self.position = self.positions.of(num_tokens, features.shape[0], features.device)
        return self.position
