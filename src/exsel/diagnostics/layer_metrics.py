"""What the diagnostics measure of one layer, call by call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from exsel.diagnostics import cosines
from exsel.diagnostics.attention_rows import BLOCK_BYTES, attention_rows
from exsel.diagnostics.metrics import METRICS, PICTURED
from exsel.diagnostics.observing import Attended, Layer
from exsel.diagnostics.score_map import NoMapError, ScoreMap, score_map
from exsel.diagnostics.sequences import Tokens
from exsel.diagnostics.token_means import TokenMeans, of_heads
from exsel.errors import ExselError
from exsel.nn.exclusive import Exclusive

_OF_WEIGHTS = ("self_weight", "spikiness", "entropy", "effective_tokens", "sink_mass")
_OF_MAPS = ("token_norm", "operator_norm")
_NAMES = tuple(metric.name for metric in METRICS)


class LayerMetrics:
    """The sums of one layer's metrics.

    Args:
        layer: the layer.
        block_bytes: see :func:`exsel.diagnostics.attention_rows.attention_rows`.
    """

    def __init__(self, layer: Layer, block_bytes: int = BLOCK_BYTES) -> None:
        self.layer = layer
        self.block_bytes = block_bytes
        self.sums: dict[str, TokenMeans] = {}
        self.gaps: dict[str, str] = {}
        self.lost = ""
        self.heads = (0, 0, 0)
        self.strength: list[float] | None = None
        self.map: ScoreMap | None = None
        self.sees_later = False
        self.has_long_sequence = False
        #: Of the first sequence: which tokens of a call, and what they had; by metric ``[heads, tokens]``.
        self.pictured: slice | None = None
        self.picture: dict[str, Tensor] = {}
        if not layer.has:
            self._gap(("query_temperature", "key_temperature", "value_temperature"), "no temperatures")
        else:
            for kind, plural in (("query", "queries"), ("key", "keys"), ("value", "values")):
                if kind not in layer.has:
                    self._gap((f"{kind}_temperature",), f"this layer has none for {plural}")

    def attended(self, attended: Attended, tokens: Tokens) -> None:
        """Add a call.

        Raises:
            ExselError: NaN or Inf; the layer is named.
        """
        y, own_value = attended.y, attended.own_value
        self._check_finite(attended, tokens)
        if y.shape[-1] != own_value.shape[-1] or y.shape[1] % own_value.shape[1]:
            self.lost = "its outputs and own values have different sizes"
            return
        if not self.heads[0]:
            self.heads = (y.shape[1], own_value.shape[1], y.shape[-1])
        elif self.heads != (y.shape[1], own_value.shape[1], y.shape[-1]):
            self.lost = "it was called with different numbers of heads"
            return
        similarity = cosines.similarity(y, own_value)
        self._look_at_first(similarity, tokens)
        self._add("similarity", similarity, tokens)
        self._add("value_similarity", cosines.value_similarity(own_value, tokens), tokens, tokens.length > 1)
        self._add("centred_similarity", cosines.centred_similarity(y, own_value, tokens), tokens)
        self._add_weights(attended, tokens)
        self._add_token_norm(attended, tokens)
        for kind in self.layer.has:
            tau = attended.tau.get(kind)
            if tau is None or tau.shape[-1] != tokens.number.shape[1]:
                self._gap((f"{kind}_temperature",), "none was computed for its tokens")
            else:
                self._add(f"{kind}_temperature", tau.expand(tokens.number.shape[0], -1, -1), tokens)

    def excluded(self, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor, tokens: Tokens) -> None:
        """Add what a call's exclusive projection did."""
        alpha = exclusive.alpha()
        self.strength = [alpha] * y.shape[1] if isinstance(alpha, float | int) else alpha.double().tolist()
        self._add("similarity_after", cosines.similarity_after(z, y, own_value), tokens)

    def result(self, num_buckets: int) -> dict[str, Any]:
        """The layer as ``diagnostics.json`` has it."""
        num_heads, num_kv_heads, head_dim = self.heads
        if self.layer.target.geometry is not None:
            num_kv_heads = self.layer.target.geometry.num_kv_heads
        found: dict[str, Any] = {}
        if self.map is not None:
            found["operator_norm"] = of_heads(self.map.operator_norms())
        for name, sums in self.sums.items():
            result = sums.result(num_heads, num_buckets)
            if result is not None:
                found[name] = result
        is_causal = not self.sees_later if self.has_long_sequence else getattr(self.layer.module, "is_causal", True)
        return {
            "layer": self.layer.index,
            "name": self.layer.target.name,
            "class": self.layer.target.cls,
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "is_causal": bool(is_causal),
            "strength": self.strength,
            "metrics": {name: found[name] for name in _NAMES if name in found and name not in self.gaps},
            "gaps": {name: self._reason(name) for name in _NAMES if name not in found or name in self.gaps},
        }

    def picture_values(self) -> dict[str, list[list[float]]]:
        """By metric, x by token by head."""
        repeated = (
            (name, self.picture[name].repeat_interleave(self.heads[0] // len(self.picture[name]), dim=0))
            for name in PICTURED
            if name in self.picture and name not in self.gaps
        )
        return {name: values.double().tolist() for name, values in repeated}

    def _reason(self, name: str) -> str:
        if name in self.gaps:
            return self.gaps[name]
        if name == "similarity_after" and self.strength is None:
            return "no exclusive projection"
        return "there was no token to count"

    def _gap(self, names: tuple[str, ...], reason: str) -> None:
        for name in names:
            self.gaps.setdefault(name, reason)
            self.sums.pop(name, None)

    def _add(self, name: str, values: Tensor, tokens: Tokens, counted: Tensor | None = None) -> None:
        if name in self.gaps:
            return
        sums = self.sums.setdefault(name, TokenMeans(values.shape[1]))
        sums.add(values, tokens, tokens.is_real if counted is None else counted)
        if self.pictured is not None and name in PICTURED:
            self.picture[name] = values[0, :, self.pictured].cpu()

    def _add_weights(self, attended: Attended, tokens: Tokens) -> None:
        if "self_weight" in self.gaps:
            return
        if attended.mixing is None:
            self._gap(_OF_WEIGHTS, "attention is written out in the layer: its weights are not seen")
            return
        y = attended.y if attended.in_float32 is None else attended.in_float32()
        found = attention_rows(attended.mixing, tokens, y, self.block_bytes)
        if not found.is_verified.transpose(1, 2)[tokens.is_real].all():
            reason = "the weights computed here do not give the layer's output: a mask or score term that is not known"
            self._gap(_OF_WEIGHTS, reason)
            return
        for name in ("self_weight", "spikiness", "entropy"):
            self._add(name, getattr(found, name), tokens)
        self._add("effective_tokens", found.entropy.exp(), tokens)
        self._add("sink_mass", found.sink_mass, tokens, tokens.number > 1)

    def _add_token_norm(self, attended: Attended, tokens: Tokens) -> None:
        if "token_norm" in self.gaps:
            return
        if self.map is None:
            try:
                self.map = score_map(self.layer.module, self.layer.target.geometry, attended)
            except NoMapError as error:
                self._gap(_OF_MAPS, str(error))
                return
        query = attended.projected.get("query")
        if query is None:
            self._gap(_OF_MAPS, "the tokens of its projections are in another order")
        else:
            self._add("token_norm", self.map.token_norms(query.hidden_states), tokens)

    def _look_at_first(self, similarity: Tensor, tokens: Tokens) -> None:
        """Where a sequence's first token sees itself alone, its output is its own value."""
        is_first = (tokens.number == 1) & (tokens.length > 1)
        if is_first.any():
            self.has_long_sequence = True
            self.sees_later |= bool((similarity.transpose(1, 2)[is_first].abs() < 0.99).any())

    def _check_finite(self, attended: Attended, tokens: Tokens) -> None:
        def is_finite(states: Tensor) -> bool:  # [B, …, T, D]
            return bool(states.movedim(-2, 1)[tokens.is_real].isfinite().all())

        # An attention function may make numbers of a query that is none.
        projected = [each.states for each in attended.projected.values()]
        if all(map(is_finite, (attended.y, attended.own_value, *projected))):
            return
        name = self.layer.target.name
        before = [projected.hidden_states for projected in attended.projected.values()]
        what = "the output of" if all(map(is_finite, before)) else "what reaches"
        raise ExselError(
            f"NaN or Inf: {what} {name} is not finite, the first such layer: nothing can be said of this model. "
            "Check its weights up to there, and for float16 whether numbers overflow"
        )
