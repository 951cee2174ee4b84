"""What the mechanisms do in one forward pass of an attention layer, at the places where the mathematics has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import UpgradeError
from exsel.kernels.scale import scale_heads
from exsel.nn.exclusive import Exclusive
from exsel.nn.positions import Positions
from exsel.nn.projections import PACKINGS, Geometry
from exsel.nn.temperature import Temperature, build_temperatures

_ACROSS = (
    "an upgraded layer was called to attend to other tokens than its own: cross-attention has no own values; "
    "leave this layer out with layers=…"
)


class Mechanisms(nn.Module):
    """The mechanisms of one attention layer: their parameters, and what reads the layer's projections.

    Args:
        geometry: the layer's heads; ``None``: not known, which is enough for a strength that is not learned.
        exclusive: strength of the projection; ``None``: without it.
        selective: which temperatures; ``None``: none.
        projections: by the name of the layer's projection, how its output is packed: a name in :data:`PACKINGS`.
        scales_projections: whether :meth:`MechanismPass.project` scales queries and values at once, for a layer whose
            attention is written out; otherwise they are scaled where they are cached and attended with.
        hidden_size: width of the layer's input, for ``token="mlp"``.
        layer_index: the layer's index in a cache.
        has_window: whether tokens see only some of those before them.
        reuses_projections: whether the layer puts other things than its tokens through its projections later.

    Raises:
        UpgradeError: ``token="frequency"``, whose feature no existing model hands to its layers.
    """

    def __init__(
        self,
        geometry: Geometry | None,
        exclusive: ExclusiveConfig | None,
        selective: SelectiveConfig | None,
        *,
        projections: dict[str, str],
        scales_projections: bool,
        hidden_size: int,
        layer_index: int | None = None,
        has_window: bool = False,
        reuses_projections: bool = False,
    ) -> None:
        super().__init__()
        self.exclusive_config, self.selective_config = exclusive, selective
        self.geometry = geometry
        self.projections = projections
        self.scales_projections = scales_projections
        self.layer_index = layer_index
        self.has_window = has_window
        self.reuses_projections = reuses_projections
        self.exclusive = None
        if exclusive is not None:
            self.exclusive = Exclusive(0 if geometry is None else geometry.num_heads, exclusive.strength)
        self.temperatures = nn.ModuleDict()
        if selective is not None:
            if selective.token == "frequency":
                raise UpgradeError("token='frequency' needs each token's frequency, which a model's layers do not get")
            assert geometry is not None
            self.temperatures.update(
                build_temperatures(
                    selective,
                    num_heads=geometry.num_heads,
                    num_kv_heads=geometry.num_kv_heads,
                    head_dim=geometry.head_dim,
                    hidden_size=hidden_size,
                )
            )
        #: The projections of which something is read; the others are called and no more.
        self.reads = frozenset(name for name, packing in projections.items() if self._reads(packing))
        self.needs_position = any(
            isinstance(temperature, Temperature) and temperature.position_logit is not None
            for temperature in self.temperatures.values()
        )

    def _reads(self, packing: str) -> bool:
        assert self.geometry is not None
        kinds = set(self.temperatures)
        if self.scales_projections:
            kinds.add("value")
        if self.selective_config is not None and self.selective_config.token == "mlp":
            kinds.add("query")  # for the layer's input
        return not kinds.isdisjoint(PACKINGS[packing].slots(self.geometry.num_heads, self.geometry.num_kv_heads))

    def begin(
        self,
        position_ids: Tensor | None = None,
        cache: Any = None,
        context: Tensor | None = None,
        layer_index: int | None = None,
        attention_mask: Any = None,
    ) -> MechanismPass:
        """One forward pass.

        Args:
            position_ids: ``[B, T]``, 0-based in each token's own sequence, or ``None``; see :class:`Positions`.
            cache: the layer's cache in transformers' protocol, before this pass.
            context: what a layer that attends across attends to.
            layer_index: of the layer in the cache, where one module is several layers.
            attention_mask: what tells, where ``position_ids`` do not, which tokens are padding.

        Raises:
            RuntimeError: a ``context``: it is no self-attention.
        """
        if context is not None:
            raise RuntimeError(_ACROSS)
        if not self.needs_position:
            return MechanismPass(self)
        index = (layer_index if layer_index is not None else self.layer_index) or 0
        return MechanismPass(self, Positions(position_ids, attention_mask, cache, index, self.has_window))


class MechanismPass:
    """One forward pass of one attention layer; see the module's description.

    Raises:
        RuntimeError: from :meth:`end`, a pass that went around the places above: nothing is dropped silently.
    """

    def __init__(self, mechanisms: Mechanisms, positions: Positions | None = None) -> None:
        self.mechanisms = mechanisms
        self.positions = positions
        self.projected: set[str] = set()
        self.features: dict[str, Tensor] = {}
        self.hidden_states: Tensor | None = None
        self.own_value: Tensor | None = None
        self.value_is_scaled = False
        self.first_token = 0
        self.is_done = False
        self.position: Tensor | None = None

    def project(
        self, name: str, module: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``module(hidden_states)``, one of the layer's projections; its output is what temperatures read."""
        packed = module(hidden_states, *args, **kwargs)
        mechanisms = self.mechanisms
        if name not in mechanisms.reads:
            return packed
        if name in self.projected:
            if mechanisms.reuses_projections:
                return packed
            raise RuntimeError(
                f"an upgraded layer called its {name} twice: which of the two is its tokens' is not known"
            )
        self.projected.add(name)
        packing = PACKINGS[mechanisms.projections[name]]
        assert mechanisms.geometry is not None
        parts = packing.split(packed, mechanisms.geometry)
        if not mechanisms.scales_projections:
            self.features.update(parts)
            if "query" in parts:
                self.hidden_states = hidden_states
            return packed
        self.hidden_states = hidden_states
        tau: dict[str, Tensor] = {}
        for kind, part in parts.items():
            # A picture's tokens have two dimensions; the mechanisms know one.
            heads_first = part.flatten(1, -3).transpose(1, 2) if part.ndim > 3 else part.transpose(0, 1)
            self.features[kind] = heads_first
            if kind == "value":
                self.own_value = heads_first
            if kind in mechanisms.temperatures:
                tau[kind] = self._tau(kind, heads_first).transpose(-2, -1).reshape(part.shape[:-1])
        if tau:
            packed = packing.scale(packed, tau, mechanisms.geometry)
        return packed

    def update(self, cache: Any, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``cache.update(key, value, …)``; the values go in scaled, and unscaled they are the tokens' own."""
        self.own_value = value
        key, value = self._scaled("key", key), self._scaled("value", value)
        self.value_is_scaled = True
        updated: tuple[Tensor, Tensor] = cache.update(key, value, *args, **kwargs)
        return updated

    def attend(
        self,
        function: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """``function(module, query, key, value, …)``, an attention function as transformers calls them.

        query ``[B, H, T, D]``, key and value ``[B, Hkv, S, D]``; returns ``[B, T, H, D]`` and what comes with it.
        """
        if getattr(function, "takes_mechanisms", False):
            return self._attend_at_once(function, module, query, key, value, *args, **kwargs)
        key, value, own_value = self._before(query, key, value)
        query = self._scaled("query", query)
        result = function(module, query, key, value, *args, **kwargs)
        self._after(query)
        exclusive = self.mechanisms.exclusive
        if exclusive is None:
            return result
        y = result[0] if isinstance(result, tuple) else result
        shape = y.shape
        y = y.reshape(query.shape[0], query.shape[2], query.shape[1], -1).transpose(1, 2)
        z = exclusive(y, own_value.to(y.dtype)).transpose(1, 2).reshape(shape)
        return (z, *result[1:]) if isinstance(result, tuple) else z

    def _attend_at_once(
        self,
        function: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """:meth:`attend` by exsel's own operator, which takes both mechanisms as arguments."""
        own_value = self.own_value if self.value_is_scaled else value
        assert own_value is not None
        self._check_own(query, own_value)
        kwargs["query_scale"] = self._temperature("query", query)
        if not self.value_is_scaled:
            key = self._scaled("key", key)
            kwargs["value_scale"] = self._temperature("value", value)
        if self.mechanisms.exclusive is not None:
            kwargs |= {"exclusive": True, "strength": self.mechanisms.exclusive.alpha(), "own_value": own_value}
        result = function(module, query, key, value, *args, **kwargs)
        self._after(query)
        return result

    def sdpa(
        self, function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``function(query, key, value, …)``, which is ``scaled_dot_product_attention``.

        ``[B, H, T, D]``, or ``[B·H, T, D]``; with more dimensions only where nothing is to be said head by head.
        """
        geometry = self.mechanisms.geometry
        is_folded = query.ndim == 3 and geometry is not None
        if is_folded:
            assert geometry is not None
            batch = query.shape[0] // geometry.num_heads
            query, key, value = (states.unflatten(0, (batch, -1)) for states in (query, key, value))
        elif query.ndim > 4 and any(True for _ in self.mechanisms.parameters()):
            raise RuntimeError(
                f"an upgraded layer attends with queries {tuple(query.shape)}: which dimension holds the heads is not "
                "known, so it can have exclusive attention of a fixed strength only"
            )
        key, value, own_value = self._before(query, key, value)
        query = self._scaled("query", query)
        if is_folded:
            query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        y = function(query, key, value, *args, **kwargs)
        self._after(query)
        exclusive = self.mechanisms.exclusive
        if exclusive is None:
            return y
        if is_folded:
            y = y.unflatten(0, (own_value.shape[0], -1))
        z: Tensor = exclusive(y, own_value.to(y.dtype))
        return z.flatten(0, 1) if is_folded else z

    def sdpa_tokens_first(
        self, function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """:meth:`sdpa` of a function that takes and returns ``[B, T, H, D]``."""

        def heads_first(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            states = (states.transpose(1, 2) for states in (query, key, value))
            return function(*states, *args, **kwargs).transpose(1, 2)

        states = (states.transpose(1, 2) for states in (query, key, value))
        return self.sdpa(heads_first, *states, *args, **kwargs).transpose(1, 2)

    def mixed(self, y: Tensor) -> Tensor:
        """What comes out of an attention that is written out in the layer, ``[…, T, H·D]``."""
        self.is_done = True
        exclusive = self.mechanisms.exclusive
        if exclusive is None:
            return y
        if self.own_value is None:
            raise RuntimeError(_ACROSS)
        own_value = self.own_value
        heads = y.reshape(*own_value.shape[:-3], own_value.shape[-2], -1, own_value.shape[-1])
        z: Tensor = exclusive(heads.transpose(-3, -2), own_value.to(y.dtype))
        return z.transpose(-3, -2).reshape(y.shape)

    def end(self, result: Any) -> Any:
        """``result``, of a layer in which every mechanism has had its place."""
        if not self.is_done:
            raise RuntimeError(
                "an upgraded attention layer took a path around its attention function, on which its mechanisms would "
                "be lost: call it as it is called in the model's own forward pass"
            )
        return result

    def end_mixed(self, result: Any) -> Any:
        """:meth:`end` of a layer that returns what it mixed, alone or first in a tuple."""
        if isinstance(result, tuple):
            return (self.mixed(result[0]), *result[1:])
        return self.mixed(result)

    def _before(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key, value and the tokens' own value; scaled already where there is a cache."""
        if self.value_is_scaled:
            assert self.own_value is not None
            own_value = self.own_value
        else:
            own_value = value
            key, value = self._scaled("key", key), self._scaled("value", value)
        self._check_own(query, own_value)
        return key, value, own_value

    def _check_own(self, query: Tensor, own_value: Tensor) -> None:
        if own_value.shape[-2] != query.shape[-2]:
            raise RuntimeError(_ACROSS)

    def _after(self, query: Tensor) -> None:
        self.first_token += query.shape[-2]
        self.is_done = True

    def _scaled(self, kind: str, states: Tensor) -> Tensor:
        """Query, key or value ``[B, heads, T, D]`` times its inverse temperature."""
        tau = self._temperature(kind, states)
        return states if tau is None else scale_heads(states, tau)

    def _temperature(self, kind: str, states: Tensor) -> Tensor | None:
        """τ ``[B, heads, T]`` of query, key or value ``[B, heads, T, D]``; ``None``: it has none."""
        if kind not in self.mechanisms.temperatures:
            return None
        if kind not in self.features:
            raise RuntimeError(f"an upgraded layer attended before its {kind} projection: its temperature has no input")
        num_tokens = states.shape[-2]
        features = self.features[kind]
        features = features.reshape(states.shape[0], -1, *features.shape[-2:])
        # A layer that attends sequence by sequence does so in their order.
        features = features[:, self.first_token : self.first_token + num_tokens]
        tau = self._tau(kind, features.transpose(1, 2))
        if states.shape[1] % tau.shape[1]:
            raise RuntimeError(f"an upgraded layer has {states.shape[1]} {kind} heads and {tau.shape[1]} temperatures")
        if tau.shape[1] != states.shape[1]:
            tau = tau.repeat_interleave(states.shape[1] // tau.shape[1], dim=1)
        return tau

    def _tau(self, kind: str, features: Tensor) -> Tensor:
        """τ ``[…, heads, T]`` of features ``[…, heads, T, D]``."""
        num_tokens = features.shape[-2]
        position = self.position
        if self.positions is not None and (position is None or position.shape[-1] != num_tokens):
            position = self.position = self.positions.of(num_tokens, features.shape[0], features.device)
        hidden_states = self.hidden_states
        if hidden_states is not None:
            hidden_states = hidden_states.reshape(features.shape[0], -1, hidden_states.shape[-1])
            hidden_states = hidden_states[:, self.first_token : self.first_token + num_tokens]
        tau: Tensor = self.mechanisms.temperatures[kind](features, position, hidden_states=hidden_states)
        return tau
