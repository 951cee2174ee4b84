"""The mechanisms in one forward pass of an attention layer.

The order is: project, τ, norm, scale the query, rotate, scale, cache, attend, exclude; an upgraded layer scales its
query after the rotation. Temperatures read the projections themselves, since a norm would undo what scales its input;
the exclusive projection takes out the tokens' own unscaled values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from exsel.functional import EPS
from exsel.kernels.exclude import exclude_directly
from exsel.kernels.operators import is_unseen
from exsel.kernels.scale import scale_directly, scale_heads
from exsel.nn.exclusive import Exclusive
from exsel.nn.layer_pass import LayerPass
from exsel.nn.projections import Geometry
from exsel.nn.temperature import Temperature

ACROSS = (
    "an upgraded layer was called to attend to other tokens than its own: cross-attention has no own values; "
    "leave this layer out with layers=…"
)


class ExclusivePass(LayerPass):
    """A pass whose output is projected off the tokens' own values; nothing else is changed.

    Args:
        exclusive: the projection; ``None``: there is none.
        geometry: see :class:`LayerPass`.
    """

    temperatures: Mapping[str, nn.Module | None] = {}

    def __init__(self, exclusive: Exclusive | None, geometry: Geometry | None = None) -> None:
        # Without LayerPass.__init__: this runs in every layer at every token.
        self.exclusive = exclusive
        self.geometry = geometry
        self.is_unseen = is_unseen()

    def before(
        self, query: Tensor, key: Tensor, value: Tensor, takes_mechanisms: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Query, key and value as they are; the projection as arguments of a function that applies it itself."""
        if self.cached_value is None:
            self.own_value = value
        own_value = self.own_value
        assert own_value is not None
        if own_value.shape[-2] != query.shape[-2]:
            raise RuntimeError(ACROSS)
        if query.ndim > 4 and (self.temperatures or (self.exclusive and self.exclusive.strength == "learned")):
            raise RuntimeError(
                f"an upgraded layer attends with queries {tuple(query.shape)}: which dimension holds the heads is not "
                "known, so it can have exclusive attention of a fixed strength only"
            )
        if not takes_mechanisms or self.exclusive is None:
            return query, key, value, {}
        return query, key, value, {"exclusive": True, "strength": self.exclusive.alpha(), "own_value": own_value}

    def after(self, y: Tensor) -> Tensor:
        """z of y, in its shape."""
        exclusive, own_value = self.exclusive, self.own_value
        if exclusive is None:
            return y
        if own_value is None:
            raise RuntimeError(ACROSS)
        if self.is_unseen and type(exclusive) is Exclusive and exclusive.strength == 1 and exclusive.runs_as_written():
            direct = exclude_directly(y, own_value, EPS, tokens_first=True)
            if direct is not None:
                return direct
        heads = y.reshape(*own_value.shape[:-3], own_value.shape[-2], -1, own_value.shape[-1])
        return self.exclude(heads.transpose(-3, -2)).transpose(-3, -2).reshape(y.shape)

    def exclude(self, y: Tensor) -> Tensor:
        """z of y."""
        if self.exclusive is None:
            return y
        assert self.own_value is not None
        return self.exclusive(y, self.own_value.to(y.dtype))

    def end(self, result: Any) -> Any:
        """``result``; raises if the layer took a path without its mechanisms."""
        if self.observer is not None:
            super().end(result)
        if not self.is_done:
            raise RuntimeError(
                "an upgraded attention layer took a path around its attention function, on which its mechanisms would "
                "be lost: call it as it is called in the model's own forward pass"
            )
        return result


class MechanismPass(ExclusivePass):
    """A pass in which queries, keys and values are also scaled by their temperatures.

    Keys and values are scaled before they are cached. A function that takes the mechanisms as arguments, as exsel's
    own operator does, applies the rest itself.

    Args:
        exclusive, temperatures: the mechanisms; the temperatures by ``query``, ``key``, ``value``.
        features: by kind ``[B, T, heads, D]``, the projections that the temperatures read: before norm and rotation.
        position: n ``[B, T]``, 1-based in each token's own sequence.
        hidden_states: x ``[B, T, E]``, the layer's input.
        token_frequency: φ ``[B, T]``, for ``token="frequency"``.
        geometry: see :class:`LayerPass`.
    """

    has_scaled_query = False

    def __init__(
        self,
        exclusive: Exclusive | None,
        temperatures: nn.ModuleDict,
        features: Mapping[str, Tensor] | None = None,
        position: Tensor | None = None,
        *,
        hidden_states: Tensor | None = None,
        token_frequency: Tensor | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__(exclusive, geometry)
        self.temperatures = temperatures._modules
        self.features = {} if features is None else dict(features)
        self.position = position
        self.hidden_states = hidden_states
        self.token_frequency = token_frequency

    def scale_query(self, query: Tensor) -> Tensor:
        """The query times its inverse temperature, for a layer that can do this before it rotates the query.

        The two commute. In this order a compiler keeps what the projection gave and what attention gets, and no more;
        :meth:`before`, which comes after the rotation, makes it keep the rotated query and GELU's results as well.
        """
        self.has_scaled_query = True
        return self.scaled("query", query)

    def to_cache(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value, scaled; the unscaled values are the tokens' own."""
        self.own_value = value
        if self.temperatures:
            key, value = self.scaled("key", key), self.scaled("value", value)
        self.cached_value = value
        return key, value

    def before(
        self, query: Tensor, key: Tensor, value: Tensor, takes_mechanisms: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Query, key and value with their temperatures; for a function that applies these itself, as its arguments."""
        is_cached = self.cached_value is not None
        query, key, value, options = super().before(query, key, value, takes_mechanisms)
        if not self.temperatures:
            return query, key, value, options
        if not is_cached:
            key = self.scaled("key", key)
        if not takes_mechanisms:
            value = value if is_cached else self.scaled("value", value)
            query = query if self.has_scaled_query else self.scaled("query", query)
            return query, key, value, {}
        if not self.has_scaled_query:
            options["query_scale"] = self.temperature("query", query)
        if not is_cached:
            options["value_scale"] = self.temperature("value", value)
        return query, key, value, options

    def scaled(self, kind: str, states: Tensor) -> Tensor:
        """Query, key or value ``[B, heads, T, D]`` times its inverse temperature."""
        temperature, features = self.temperatures.get(kind), self.features.get(kind)
        if temperature is None:
            return states
        is_one_token = self.is_unseen and states.shape[-2] == 1 and self.first_token == 0
        if is_one_token and type(temperature) is Temperature and temperature.runs_as_written():
            weight, logit = temperature._parameters["weight"], temperature._parameters["position_logit"]
            if features is not None and weight is not None and temperature.token == "shared":
                position = None if logit is None else self.places(states)
                direct = scale_directly(states, features, weight, position, logit, temperature.position_form)
                if direct is not None:
                    return direct
        tau = self.temperature(kind, states)
        assert tau is not None
        return scale_heads(states, tau)

    def temperature(self, kind: str, states: Tensor) -> Tensor | None:
        """τ ``[B, heads, T]`` of query, key or value ``[B, heads, T, D]``; ``None``: it has none."""
        if kind not in self.temperatures:
            return None
        if kind not in self.features:
            raise RuntimeError(f"an upgraded layer attended before its {kind} projection: its temperature has no input")
        features = self._of_tokens(self.features[kind], states, 2)
        tau = self.tau(kind, features.transpose(1, 2))
        if states.shape[1] % tau.shape[1]:
            raise RuntimeError(f"an upgraded layer has {states.shape[1]} {kind} heads and {tau.shape[1]} temperatures")
        # Attention without grouped heads may receive each key and value repeated for every query head.
        return tau if tau.shape[1] == states.shape[1] else tau.repeat_interleave(states.shape[1] // tau.shape[1], dim=1)

    def tau(self, kind: str, features: Tensor) -> Tensor:
        """τ ``[B, heads, T]`` of features ``[B, heads, T, D]``."""
        temperature = self.temperatures[kind]
        assert isinstance(temperature, Temperature)
        hidden_states = self.hidden_states if temperature.reads_input else None
        if hidden_states is not None:
            hidden_states = self._of_tokens(hidden_states, features, 1)
        return temperature(
            features,
            self.places(features),
            hidden_states=hidden_states,
            token_frequency=self.token_frequency,
        )

    def places(self, features: Tensor) -> Tensor | None:
        """n of the tokens of features ``[B, heads, T, D]``."""
        return self.position

    def _of_tokens(self, states: Tensor, attended: Tensor, num_last: int) -> Tensor:
        """The part of ``states`` that belongs to the tokens of ``attended`` ``[B, heads, T, D]``: ``[B, T, …]``."""
        batch, num_tokens = attended.shape[0], attended.shape[-2]
        if states.ndim == num_last + 2 and self.first_token == 0 and states.shape[:2] == (batch, num_tokens):
            return states
        # The states may hold all tokens of the batch in one row. A layer may attend once a sequence, in their order.
        states = states.reshape(batch, -1, *states.shape[-num_last:])
        return states[:, self.first_token : self.first_token + num_tokens]
