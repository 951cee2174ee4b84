"""The inverse temperatures of selective self-attention as modules: their parameters and how these start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exsel import reference
from exsel.config import PositionForm, SelectiveConfig, TokenTerm
from exsel.functional import inverse_temperature
from exsel.nn.projections import Geometry
from exsel.nn.scalars import Scalars


class Temperature(Scalars):
    """Selective self-attention's inverse temperature for the queries, keys or values of one layer.

        τ = τ_tok + τ_pos,    τ_tok = tanh(f(x)),    τ_pos = 1 + c(a) log n

    Starts at τ_tok = 0 and c(a) = ``position_init``: a pretrained model starts as itself, exactly without the
    positional term and within ``position_init`` · log n of each score with it.

    Args:
        num_heads: H, of what is scaled (queries: query heads; keys and values: key/value heads).
        head_dim: D.
        token: f. ``"shared"``: w · GELU(head's projection), w ∈ R^D; ``"mlp"``: w · GELU(W' x), W' of
            ``head_dim // 2`` rows a head; ``"linear"``: w · x, w ∈ R^E; ``"frequency"``: u φ(token); ``"constant"``:
            w, one number; ``"none"``: without τ_tok.
        position: with or without the log n term.
        per_head: a w (or u) for each head, or one for all.
        position_form: c. ``"sigmoid"``: σ(a); ``"double_exponential"``: exp(−exp a).
        position_per_head: an a for each head, or one for all.
        position_init: c(a) at the start.
        hidden_size: E, width of x, needed by ``token="mlp"`` and ``"linear"``.

    Raises:
        ValueError: ``token="mlp"`` or ``"linear"`` without ``hidden_size``, an unknown ``token`` or ``position_form``,
            or a ``position_init`` that is not in (0, 1).

    Source: Zhang et al., NeurIPS 2024, arXiv:2411.12892, Definition 1. Ours: see :class:`exsel.SelectiveConfig`.
    """

    __call__: Callable[..., Tensor]
    weight: nn.Parameter | None
    position_logit: nn.Parameter | None

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        token: TokenTerm = "shared",
        position: bool = True,
        per_head: bool = True,
        position_form: PositionForm = "sigmoid",
        position_per_head: bool = True,
        position_init: float = 6e-4,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        SelectiveConfig(token=token, position_form=position_form, position_init=position_init)  # checks the values
        self.num_heads = num_heads
        self.token = token
        self.position_form = position_form
        self.initial_position_logit = reference.position_logit_of(position_init, position_form)
        #: Whether τ_tok is computed from x, the layer's input.
        self.reads_input = token in ("mlp", "linear")
        if self.reads_input and hidden_size is None:
            raise ValueError(f"token={token!r} reads the layer's input: pass its width as hidden_size")
        widths = {"shared": head_dim, "mlp": max(1, head_dim // 2), "linear": hidden_size or 0, "none": 0}
        feature_dim = widths.get(token, 1)
        weight = None if token == "none" else self.empty(num_heads if per_head else 1, feature_dim)
        self.register_parameter("weight", weight)
        position_logit = self.empty(num_heads if position_per_head else 1) if position else None
        self.register_parameter("position_logit", position_logit)
        self.feature_proj: nn.Linear | None = None
        if token == "mlp":
            assert hidden_size is not None
            self.feature_proj = nn.Linear(hidden_size, num_heads * feature_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w = 0 (or u = 0) and c(a) = ``position_init``; W' is left as its linear layer starts it."""
        if self.weight is not None:
            nn.init.zeros_(self.weight)
        if self.position_logit is not None:
            nn.init.constant_(self.position_logit, self.initial_position_logit)

    def at_start(self, position: Tensor | None) -> Tensor:
        """τ before any training: 1, or with a log n term 1 + ``position_init`` · log n ``[…, 1, T]``, float64."""
        if self.position_logit is None or position is None:
            return torch.ones((), dtype=torch.float64)
        start = torch.tensor([self.initial_position_logit], dtype=torch.float64, device=position.device)
        return reference.position_term(position, start, self.position_form)

    def forward(
        self,
        projection: Tensor,
        position: Tensor | None = None,
        *,
        hidden_states: Tensor | None = None,
        token_frequency: Tensor | None = None,
    ) -> Tensor:
        """The inverse temperatures.

        Args:
            projection: the head's query, key or value before rotary embedding and norm, ``[B, H, T, D]``.
            position: n ``[B, T]`` or ``[T]``, 1-based within each token's own sequence; needed with a log n term.
            hidden_states: x ``[B, T, E]``, the layer's input; needed by ``token="mlp"`` and ``"linear"``.
            token_frequency: φ ``[B, T]``, standardised log frequency; needed by ``token="frequency"``.

        Returns:
            τ ``[B, H, T]``, float32 (float64 for float64).

        Raises:
            ValueError: an input that this form needs and did not get.
        """
        if self.position_logit is not None and position is None:
            raise ValueError("the positional term needs position: each token's 1-based place in its sequence")
        if self.reads_input and hidden_states is None:
            raise ValueError(f"token={self.token!r} needs hidden_states, the layer's input")
        if self.token == "frequency" and token_frequency is None:
            raise ValueError("token='frequency' needs token_frequency, the standardised log frequencies")
        weight = None if self.weight is None else self.of_own_heads(self.weight)
        position_logit = None if self.position_logit is None else self.of_own_heads(self.position_logit)
        if self.token in ("shared", "mlp"):
            assert weight is not None
            features = projection
            if self.feature_proj is not None:
                assert hidden_states is not None
                # An adapter's weights stay in float32 beside a model in bfloat16; quantised ones take any input.
                if (dtype := self.feature_proj.weight.dtype).is_floating_point and dtype.itemsize > 1:
                    hidden_states = hidden_states.to(dtype)
                features = self.feature_proj(hidden_states).unflatten(-1, (-1, weight.shape[-1])).transpose(1, 2)
            return inverse_temperature(
                features,
                weight,
                position=position if position_logit is not None else None,
                position_logit=position_logit,
                position_form=self.position_form,
            )
        tau = projection.new_ones((), dtype=reference.accumulation_dtype(projection.dtype))
        if position_logit is not None:
            assert position is not None
            tau = reference.position_term(position, position_logit, self.position_form)
        if weight is not None:
            features = tau.new_ones(1, 1)
            if self.token == "linear":
                assert hidden_states is not None
                features = self.for_own_heads(hidden_states)
            elif self.token == "frequency":
                assert token_frequency is not None
                features = token_frequency.to(tau.dtype).unsqueeze(-1)
            tau = tau + reference.linear_token_term(features, weight)
        return tau.expand(projection.shape[:-1])

    def extra_repr(self) -> str:
        """The form, and which parameters there are."""
        form = None if self.position_logit is None else self.position_form
        return f"num_heads={self.num_heads}, token={self.token!r}, position={form}"


def build_temperatures(
    selective: SelectiveConfig | None,
    geometry: Geometry | None,
    hidden_size: int,
    temperature: type[Temperature] = Temperature,
) -> nn.ModuleDict:
    """The temperatures that ``selective`` asks for, by what they scale: ``query``, ``key``, ``value``."""
    if selective is None:
        return nn.ModuleDict()
    assert geometry is not None
    same = ("token", "per_head", "position_form", "position_per_head", "position_init")
    options: dict[str, Any] = {"hidden_size": hidden_size, **{name: getattr(selective, name) for name in same}}
    kinds = {
        "query": (geometry.num_heads, selective.position),
        "key": (geometry.num_kv_heads, selective.position),
        "value": (geometry.num_kv_heads, selective.value_position),
    }
    return nn.ModuleDict(
        {
            kind: temperature(num_heads, geometry.head_dim, position=position, **options)
            for kind, (num_heads, position) in kinds.items()
            if getattr(selective, kind)
        }
    )
