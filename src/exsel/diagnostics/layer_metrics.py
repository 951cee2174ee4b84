"""The metrics of one layer, measured call by call; their means by head and by position, added up over the batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exsel.diagnostics import cosines
from exsel.diagnostics.attention_rows import attention_rows
from exsel.diagnostics.metrics import METRICS, PICTURED
from exsel.diagnostics.observing import Attended, Layer
from exsel.diagnostics.score_map import NoMapError, ScoreMap, score_map
from exsel.diagnostics.sequences import NUM_BUCKETS, Tokens
from exsel.errors import ExselError
from exsel.nn.exclusive import Exclusive

_OF_WEIGHTS = ("self_weight", "spikiness", "entropy", "effective_tokens", "sink_mass")
_OF_SCORE_MAP = ("token_norm", "operator_norm")
_NAMES = tuple(metric.name for metric in METRICS)
# An output whose cosine with the own value is lower is not the own value itself.
_IS_OWN_VALUE = 0.99


class LayerMetrics:
    """All metrics of one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.means: dict[str, TokenMeans] = {}
        #: For each metric that could not be measured, the reason.
        self.gaps: dict[str, str] = {}
        #: The reason why nothing can be measured in this layer; empty where it can be.
        self.lost = ""
        #: Query heads, key/value heads, size of a head.
        self.heads = (0, 0, 0)
        self.strength: list[float] | None = None
        self.score_map: ScoreMap | None = None
        self.sees_later = False
        self.has_long_sequence = False
        #: The columns of the pictured tokens in the current call, and by metric their values ``[heads, tokens]``.
        self.pictured: slice | None = None
        self.picture: dict[str, Tensor] = {}
        for kind, plural in (("query", "queries"), ("key", "keys"), ("value", "values")):
            if kind not in layer.has:
                reason = f"this layer has none for {plural}" if layer.has else "no temperatures"
                self._gap(reason, f"{kind}_temperature")

    def attended(self, attended: Attended, tokens: Tokens) -> None:
        """Measure a call.

        Raises:
            ExselError: NaN or Inf; the message names the layer.
        """
        y, own_value = attended.y, attended.own_value
        self._check_finite(attended, tokens)
        heads = (y.shape[1], own_value.shape[1], y.shape[-1])
        if y.shape[-1] != own_value.shape[-1] or y.shape[1] % own_value.shape[1]:
            self.lost = "its outputs and own values have different sizes"
        elif self.heads[0] and self.heads != heads:
            self.lost = "it was called with different numbers of heads"
        if self.lost:
            return
        self.heads = heads
        similarity = cosines.similarity(y, own_value)
        self._look_at_first_tokens(similarity, tokens)
        self._add("similarity", similarity, tokens)
        self._add("value_similarity", cosines.value_similarity(own_value, tokens), tokens, tokens.length > 1)
        self._add("centred_similarity", cosines.centred_similarity(y, own_value, tokens), tokens)
        self._add_weights(attended, tokens)
        self._add_token_norm(attended, tokens)
        for kind in self.layer.has:
            tau = attended.tau.get(kind)
            if tau is None or tau.shape[-1] != tokens.number.shape[1]:
                self._gap("none was computed for its tokens", f"{kind}_temperature")
            else:
                self._add(f"{kind}_temperature", tau.expand(tokens.number.shape[0], -1, -1), tokens)

    def excluded(self, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor, tokens: Tokens) -> None:
        """Measure what a call's exclusive projection did."""
        alpha = exclusive.alpha()
        self.strength = [alpha] * y.shape[1] if isinstance(alpha, float | int) else alpha.double().tolist()
        self._add("similarity_after", cosines.similarity_after(z, y, own_value), tokens)

    def result(self, num_buckets: int) -> dict[str, Any]:
        """The layer's entry in ``diagnostics.json``."""
        num_heads, num_kv_heads, head_dim = self.heads
        if self.layer.target.geometry is not None:
            num_kv_heads = self.layer.target.geometry.num_kv_heads
        found = {name: means.result(num_heads, num_buckets) for name, means in self.means.items()}
        if self.score_map is not None and "operator_norm" not in self.gaps:
            found["operator_norm"] = over_heads(self.score_map.operator_norms())
        is_causal = not self.sees_later if self.has_long_sequence else getattr(self.layer.module, "is_causal", True)
        no_exclusion = {"similarity_after": "no exclusive projection"} if self.strength is None else {}
        gaps = {**dict.fromkeys(_NAMES, "there was no token to count"), **no_exclusion, **self.gaps}
        return {
            "layer": self.layer.index,
            "name": self.layer.target.name,
            "class": self.layer.target.cls,
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "is_causal": bool(is_causal),
            "strength": self.strength,
            "metrics": {name: found[name] for name in _NAMES if name in found},
            "gaps": {name: gaps[name] for name in _NAMES if name not in found},
        }

    def picture_values(self) -> dict[str, list[list[float]]]:
        """Of the pictured tokens, by metric: for each query head the value of each token."""
        return {
            name: values.repeat_interleave(self.heads[0] // len(values), dim=0).double().tolist()
            for name in PICTURED
            if name not in self.gaps and (values := self.picture.get(name)) is not None
        }

    def _gap(self, reason: str, *names: str) -> None:
        for name in names:
            self.gaps.setdefault(name, reason)
            self.means.pop(name, None)

    def _add(self, name: str, values: Tensor, tokens: Tokens, counted: Tensor | None = None) -> None:
        counted = tokens.is_real if counted is None else counted
        if name not in self.gaps and counted.any():
            self.means.setdefault(name, TokenMeans(values.shape[1])).add(values, tokens, counted)
        if self.pictured is not None and name in PICTURED:
            self.picture[name] = values[0, :, self.pictured].cpu()

    def _add_weights(self, attended: Attended, tokens: Tokens) -> None:
        if "self_weight" in self.gaps:
            return
        if attended.mixing is None:
            self._gap("attention is written out in the layer: its weights are not seen", *_OF_WEIGHTS)
            return
        y = attended.y if attended.in_float32 is None else attended.in_float32()
        found, is_verified = attention_rows(attended.mixing, tokens, y)
        if not is_verified.transpose(1, 2)[tokens.is_real].all():
            reason = "the weights computed here do not give the layer's output: a mask or score term that is not known"
            self._gap(reason, *_OF_WEIGHTS)
            return
        for name, values in found.items():
            self._add(name, values, tokens, tokens.number > 1 if name == "sink_mass" else None)

    def _add_token_norm(self, attended: Attended, tokens: Tokens) -> None:
        if "token_norm" in self.gaps:
            return
        try:
            if self.score_map is None:
                self.score_map = score_map(self.layer.module, self.layer.target.geometry, attended)
            if "query" not in attended.projected:
                raise NoMapError("the tokens of its projections are in another order")
        except NoMapError as error:
            self._gap(str(error), *_OF_SCORE_MAP)
            return
        self._add("token_norm", self.score_map.token_norms(attended.projected["query"].hidden_states), tokens)

    def _look_at_first_tokens(self, similarity: Tensor, tokens: Tokens) -> None:
        """A first token whose output is not its own value has seen later tokens. Then the layer is not causal."""
        is_first = (tokens.number == 1) & (tokens.length > 1)
        if is_first.any():
            self.has_long_sequence = True
            self.sees_later |= bool((similarity.transpose(1, 2)[is_first].abs() < _IS_OWN_VALUE).any())

    def _check_finite(self, attended: Attended, tokens: Tokens) -> None:
        def is_finite(states: Tensor) -> bool:  # [B, …, T, D]
            return bool(states.movedim(-2, 1)[tokens.is_real].isfinite().all())

        # Projections are checked too: an attention function may turn the NaN of a query into finite outputs.
        projected = attended.projected.values()
        if all(map(is_finite, (attended.y, attended.own_value, *(each.states for each in projected)))):
            return
        name = self.layer.target.name
        what = "the output of" if all(is_finite(each.hidden_states) for each in projected) else "what reaches"
        raise ExselError(
            f"NaN or Inf: {what} {name} is not finite, the first such layer: nothing can be said of this model. "
            "Check its weights up to there, and for float16 whether numbers overflow"
        )


class TokenMeans:
    """The sums of one metric in one layer, of all query heads or of all key/value heads."""

    def __init__(self, num_heads: int) -> None:
        self.sums = torch.zeros(NUM_BUCKETS, num_heads, dtype=torch.float64)
        self.counts = torch.zeros(NUM_BUCKETS, dtype=torch.long)
        self.least, self.most = float("inf"), float("-inf")

    def add(self, values: Tensor, tokens: Tokens, counted: Tensor) -> None:
        """Add the ``values`` ``[B, heads, T]`` of those tokens of a batch that ``counted`` ``[B, T]`` selects."""
        if not counted.any():
            return
        chosen = values.transpose(1, 2)[counted].cpu().double()
        bucket = tokens.bucket[counted].cpu()
        self.sums.index_add_(0, bucket, chosen)
        self.counts += torch.bincount(bucket, minlength=NUM_BUCKETS)
        self.least = min(self.least, float(chosen.min()))
        self.most = max(self.most, float(chosen.max()))

    def result(self, num_heads: int, num_buckets: int) -> dict[str, Any]:
        """The metric's entry in ``diagnostics.json``; every one of ``num_heads`` query heads gets a number."""
        sums, counts = self.sums[:num_buckets], self.counts[:num_buckets]
        repeats = num_heads // sums.shape[1]
        means = [
            (row / count).repeat_interleave(repeats).tolist() if count else [None] * num_heads
            for row, count in zip(sums, counts, strict=True)
        ]
        return {
            **over_heads((sums.sum(0) / counts.sum()).repeat_interleave(repeats)),
            "least": self.least,
            "most": self.most,
            "buckets": [None if row[0] is None else sum(row) / len(row) for row in means],
            "head_buckets": [list(by_bucket) for by_bucket in zip(*means, strict=True)],
        }


def over_heads(values: Tensor) -> dict[str, Any]:
    """The entry in ``diagnostics.json`` of a metric with one number for each head, ``[H]``."""
    heads = values.double().cpu()
    return {
        "mean": float(heads.mean()),
        "least": float(heads.min()),
        "most": float(heads.max()),
        "heads": heads.tolist(),
        "buckets": [],
        "head_buckets": [],
    }
