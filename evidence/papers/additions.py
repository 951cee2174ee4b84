"""What is put into the library's model to compare its own mechanisms with: sinks, gates, other temperatures.

Each is a function of a model, which it changes in place. What changes attention goes into each layer as a child that
begins an :class:`exsel.nn.layer_pass.LayerPass` of its own, and composes with both mechanisms; what is another
temperature takes the place of the queries' own. All are for training and evaluation on whole causal sequences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exsel.functional import exclude
from exsel.models import ExselForCausalLM
from exsel.models.modeling import ExselAttention
from exsel.nn import Temperature
from exsel.nn.layer_pass import LayerPass
from exsel.nn.mechanisms import Mechanisms
from exsel.nn.projections import Projections
from exsel.reference import accumulation_dtype
from exsel.upgrading.attention_layers import Target, own_layers
from exsel.upgrading.upgraded_class import insert

_VALUE, _OUTPUT = "v_proj", "o_proj"


class _Pass(LayerPass):
    """A pass over whole causal sequences, which the additions are written for."""

    def __init__(self, mechanisms: Any) -> None:
        super().__init__()
        self.mechanisms = mechanisms

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
        """See :meth:`exsel.nn.layer_pass.LayerPass.attend`.

        Raises:
            RuntimeError: padding, packed documents or a cache.
        """
        (attention_mask,) = args
        if attention_mask is not None or query.shape[2] != key.shape[2]:
            raise RuntimeError("what is tried here attends within whole sequences: no padding, documents or cache")

        @functools.wraps(function)
        def changed(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
        ) -> Any:
            return self._attend(function, module, query, key, value, **kwargs)

        return super().attend(changed, module, query, key, value, None, **kwargs)

    def _attend(
        self, function: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Any:
        """``function`` without a mask, changed: ``[B, T, H, D]`` and what comes with it."""
        return function(module, query, key, value, None, **kwargs)


class _Addition(Mechanisms):
    """One layer's addition: its parameters, and what begins its passes."""

    passes: ClassVar[type[_Pass]]

    def __init__(self, target: Target) -> None:
        super().__init__(target.geometry, None, None, Projections({}), hidden_size=0)

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        """A pass, which needs to know nothing."""
        return self.passes(self)


def _add(model: ExselForCausalLM, build: Callable[[Target], _Addition], *, at_output: bool = False) -> None:
    for target in own_layers(model):
        if at_output:
            assert target.projections is not None
            packings = {**target.projections.packings, _OUTPUT: "query"}
            target = replace(target, projections=replace(target.projections, packings=packings))
        insert(model.get_submodule(target.name), target.projections, build(target))


class _SinkPass(_Pass):
    def _attend(
        self, function: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Any:
        sinks: Sinks = self.mechanisms
        count, batch = sinks.key.shape[1], key.shape[0]

        def begun(states: Tensor, learned: Tensor) -> Tensor:
            return torch.cat((learned.to(states.dtype).expand(batch, -1, -1, -1), states), dim=2)

        # Queries that stand before the first token keep the mask causal, which needs no mask; they are dropped again.
        query = F.pad(query, (0, 0, count, 0))
        if kwargs.get("own_value") is not None:
            kwargs["own_value"] = F.pad(kwargs["own_value"], (0, 0, count, 0))
        for name in ("query_scale", "value_scale"):
            if kwargs.get(name) is not None:
                kwargs[name] = F.pad(kwargs[name], (count, 0), value=1.0)
        y, weights = function(module, query, begun(key, sinks.key), begun(value, sinks.value), None, **kwargs)
        return y[:, count:], weights


class Sinks(_Addition):
    """Learned keys and values before the first token, seen by every token:

        y_i = softmax([q_i k_sᵀ, q_i k_{≤i}ᵀ] / √D) [v_s, v_{≤i}]

    They have no position: keys are what rotary embedding would leave. They begin as tokens' keys and values do, whose
    inputs a norm gives unit variance.

    Args:
        target: the layer.
        count: how many for each key/value head.
        deviation: of their initial entries.
    """

    passes = _SinkPass

    def __init__(self, target: Target, count: int, deviation: float) -> None:
        super().__init__(target)
        assert target.geometry is not None
        shape = (target.geometry.num_kv_heads, count, target.geometry.head_dim)
        self.key = nn.Parameter(torch.empty(shape).normal_(std=deviation))
        self.value = nn.Parameter(torch.empty(shape).normal_(std=deviation))


def add_sinks(model: ExselForCausalLM, count: int) -> None:
    """Learned attention sinks in every layer: see :class:`Sinks`.

    Args:
        model: changed in place.
        count: of sinks for each key/value head, at least 1.

    Source: Zhai, arXiv:2603.09078 (2026), Figure 6, which compares 0, 1 and 4.
    """
    deviation = model.config.initializer_range * math.sqrt(model.config.hidden_size)
    _add(model, lambda target: Sinks(target, count, deviation))


class _DiagonalPass(_Pass):
    def _attend(
        self, function: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Any:
        # Queries from the second token, keys up to the last but one: causal attention then is the strict one.
        for name, part in (("own_value", slice(1, None)), ("query_scale", slice(1, None)), ("value_scale", slice(-1))):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name][:, :, part]
        y, weights = function(module, query[:, :, 1:], key[:, :, :-1], value[:, :, :-1], None, **kwargs)
        return F.pad(y, (0, 0, 0, 0, 1, 0)), weights


class _MaskedDiagonal(_Addition):
    passes = _DiagonalPass


def mask_diagonal(model: ExselForCausalLM) -> None:
    """No token attends to itself, in any layer: y_i = softmax(q_i k_{<i}ᵀ / √D) v_{<i}, and y_1 = 0."""
    _add(model, _MaskedDiagonal)


class _OutputPass(_Pass):
    """A pass that changes what goes into the layer's output projection: all that mixes is done by then."""

    def project(
        self, name: str, module: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The layer's projections, the output projection among them."""
        if name == _OUTPUT:
            return module(self._changed(hidden_states), *args, **kwargs)
        projected = super().project(name, module, hidden_states, *args, **kwargs)
        self._keep(name, hidden_states, projected)
        return projected

    def _keep(self, name: str, hidden_states: Tensor, projected: Tensor) -> None:
        raise NotImplementedError

    def _changed(self, mixed: Tensor) -> Tensor:
        """``[B, T, H·D]`` → the same."""
        raise NotImplementedError


class _GatePass(_OutputPass):
    def _keep(self, name: str, hidden_states: Tensor, projected: Tensor) -> None:
        if name == _VALUE:
            self.gate = torch.sigmoid(self.mechanisms.gate_proj(hidden_states))

    def _changed(self, mixed: Tensor) -> Tensor:
        return mixed * self.gate


class OutputGate(_Addition):
    """A gate for each element of each head: z ⊙ σ(x W_g), after attention and after the exclusive projection.

    Args:
        target: the layer.
        deviation: of the initial entries of W_g.
    """

    passes = _GatePass

    def __init__(self, target: Target, deviation: float) -> None:
        super().__init__(target)
        assert target.geometry is not None
        width = target.geometry.num_heads * target.geometry.head_dim
        self.gate_proj = nn.Linear(target.hidden_size, width, bias=False)
        nn.init.normal_(self.gate_proj.weight, std=deviation)


def add_output_gate(model: ExselForCausalLM) -> None:
    """A gate on the heads' outputs in every layer: see :class:`OutputGate`.

    Source: Qiu et al., "Gated Attention for Large Language Models", arXiv:2505.06708 (2025), its elementwise gate.
    """
    _add(model, lambda target: OutputGate(target, model.config.initializer_range), at_output=True)


class _ProjectionPass(_OutputPass):
    """A pass that takes a direction out of the heads' outputs, by what the token is and what its value is."""

    def _keep(self, name: str, hidden_states: Tensor, projected: Tensor) -> None:
        if name == _VALUE:
            self.hidden_states, self.value = hidden_states, self._by_head(projected)

    def _by_head(self, states: Tensor) -> Tensor:
        """``[B, T, H·D]`` → ``[B, H, T, D]``."""
        by_head: Tensor = states.unflatten(-1, (-1, self.mechanisms.geometry.head_dim))
        return by_head.transpose(1, 2)

    def _changed(self, mixed: Tensor) -> Tensor:
        return self._excluded(self._by_head(mixed)).transpose(1, 2).flatten(-2)

    def _excluded(self, y: Tensor) -> Tensor:
        """``[B, H, T, D]`` → the same."""
        raise NotImplementedError


class _CommonDirectionPass(_ProjectionPass):
    def _excluded(self, y: Tensor) -> Tensor:
        return exclude(y, running_mean(self.value).to(y.dtype))


class _WithoutCommonDirection(_Addition):
    passes = _CommonDirectionPass


def running_mean(value: Tensor) -> Tensor:
    """m_i, the mean of v_1 … v_i: ``[…, T, D]`` → the same, in float32 (float64 for float64)."""
    dtype = accumulation_dtype(value.dtype)
    count = torch.arange(1, value.shape[-2] + 1, device=value.device, dtype=dtype)
    return value.to(dtype).cumsum(-2) / count.unsqueeze(-1)


def remove_common_direction(model: ExselForCausalLM) -> None:
    """Take the direction that the values share out of the outputs, in every layer:

        z_i = y_i − (y_i · m̂_i) m̂_i,    m_i = (v_1 + … + v_i) / i

    A mean over the whole sequence would read the future; that of the values up to the token does not. For the first
    token m is its own value. With exclusive attention this follows the exclusive projection.
    """
    _add(model, _WithoutCommonDirection, at_output=True)


class _FullWidthPass(_ProjectionPass):
    def _excluded(self, y: Tensor) -> Tensor:
        value = self.value.repeat_interleave(y.shape[1] // self.value.shape[1], dim=1)
        z = exclude(y.transpose(1, 2).flatten(-2), value.transpose(1, 2).flatten(-2).to(y.dtype))
        by_head: Tensor = z.unflatten(-1, (-1, y.shape[-1]))
        return by_head.transpose(1, 2)


class _WithoutOwnValues(_Addition):
    passes = _FullWidthPass


def exclude_full_width(model: ExselForCausalLM) -> None:
    """Take all heads' own values out of all heads' outputs at once, in every layer:

        z_i = y_i − (y_i · v̂_i) v̂_i,    y and v of all heads side by side, [H·D]

    One direction of H·D goes, where exclusive attention takes one of D from each head. With exclusive attention it
    follows the exclusive projection.

    Source: "BeliefFormer: Belief Attention in Transformer", openreview.net/forum?id=Ard2QzPAUK (2025): its global
    projection; with exclusive attention, its form that does both.
    """
    _add(model, _WithoutOwnValues, at_output=True)


class _TokenStrengthPass(_ProjectionPass):
    def _excluded(self, y: Tensor) -> Tensor:
        strength = torch.tanh(self.mechanisms.strength_proj(self.hidden_states)).transpose(1, 2)
        return exclude(y, self.value.to(y.dtype), strength=strength)


class TokenStrength(_Addition):
    """Exclusive attention whose strength each token chooses for each head: α = tanh(x W_α) ``[H]``, from 0.

    Args:
        target: the layer.
    """

    passes = _TokenStrengthPass

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        assert target.geometry is not None
        self.strength_proj = nn.Linear(target.hidden_size, target.geometry.num_heads, bias=False)
        nn.init.zeros_(self.strength_proj.weight)


def add_token_strength(model: ExselForCausalLM) -> None:
    """Exclusive attention with a strength of each token and head, in every layer: see :class:`TokenStrength`."""
    _add(model, TokenStrength, at_output=True)


def zero_output_projections(model: ExselForCausalLM) -> None:
    """Begin with attention that adds nothing: W_o = 0 in every layer, so that tokens begin without context."""
    for module in model.modules():
        if isinstance(module, ExselAttention):
            nn.init.zeros_(module.o_proj.weight)


class LearnedConstant(Temperature):
    """A learned inverse temperature for each head and nothing else: τ_h, from 1.

    It has no bounds. The library's own constant, ``token="constant"``, is 1 + tanh w and stays between 0 and 2.

    Args:
        num_heads: H, of the queries.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__(num_heads, 0, token="none", position=False)
        self.factor = nn.Parameter(torch.ones(num_heads))

    def forward(self, projection: Tensor, position: Tensor | None = None, **inputs: Any) -> Tensor:
        """τ ``[B, H, T]``."""
        dtype = accumulation_dtype(projection.dtype)
        return self.factor.to(dtype).unsqueeze(-1).expand(projection.shape[:-1])


class ScalableSoftmax(LearnedConstant):
    """Scalable-Softmax as an inverse temperature of the queries: τ_n = s_h log n, n the 1-based position.

    s starts at 1 / (log L − 1): the mean of log n up to L is log L − 1 nearly, so that τ is 1 on the mean.

    Args:
        num_heads: H.
        seq_len: L, tokens a sequence; at least 4.

    Source: Nakanishi, arXiv:2501.19399 (2025), without its optional bias.
    """

    def __init__(self, num_heads: int, seq_len: int) -> None:
        super().__init__(num_heads)
        nn.init.constant_(self.factor, 1 / (math.log(seq_len) - 1))

    def forward(self, projection: Tensor, position: Tensor | None = None, **inputs: Any) -> Tensor:
        """τ ``[B, H, T]``."""
        assert position is not None
        return super().forward(projection) * position.unsqueeze(-2).to(accumulation_dtype(projection.dtype)).log()


class YarnTemperature(Temperature):
    """YaRN's attention factor, token by token: τ_n = (0.1 ln(n / L₀) + 1)² beyond the first L₀ tokens, before them 1.

    YaRN multiplies queries and keys by 0.1 ln s + 1 each, s the whole sequence's length over the trained one, so that
    scores grow by the square. Here a model is trained from the start and has no trained length: s is n / L₀ of each
    query, as in YaRN's dynamic form, and both factors are the query's, since a key does not know who reads it. The
    rotary frequencies stay: what is compared is the temperature. Nothing is learned.

    Args:
        num_heads: H, of the queries.
        reference: L₀, in tokens.

    Source: Peng et al., "YaRN", arXiv:2309.00071 (2023), its temperature alone.
    """

    def __init__(self, num_heads: int, reference: int) -> None:
        super().__init__(num_heads, 0, token="none", position=False)
        self.reference = reference

    def forward(self, projection: Tensor, position: Tensor | None = None, **inputs: Any) -> Tensor:
        """τ ``[B, H, T]``."""
        assert position is not None
        length = (position.to(accumulation_dtype(projection.dtype)) / self.reference).clamp_min(1)
        return (0.1 * length.log() + 1).square().unsqueeze(-2).expand(projection.shape[:-1])


def _set_temperatures(model: ExselForCausalLM, build: Callable[[int], Temperature]) -> None:
    for module in model.modules():
        if isinstance(module, ExselAttention):
            assert "query" not in module.temperatures, "the queries have a temperature already"
            module.temperatures["query"] = build(model.config.num_attention_heads)


def add_constant_temperature(model: ExselForCausalLM) -> None:
    """See :class:`LearnedConstant`."""
    _set_temperatures(model, LearnedConstant)


def add_scalable_softmax(model: ExselForCausalLM) -> None:
    """See :class:`ScalableSoftmax`; L is the length that the model is meant for."""
    _set_temperatures(model, lambda heads: ScalableSoftmax(heads, model.config.max_position_embeddings))


def add_yarn_temperature(model: ExselForCausalLM) -> None:
    """See :class:`YarnTemperature`; L₀ is a quarter of the length that the model is meant for."""
    _set_temperatures(model, lambda heads: YarnTemperature(heads, model.config.max_position_embeddings // 4))
