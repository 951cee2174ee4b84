"""The models of a report, and their numbers in words."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from exsel.diagnostics.metrics import METRICS, Metric
from exsel.report.formatting import MISSING, count, fixed, number, three_digits

_STRENGTH = Metric("strength", "α", "Strength of the exclusive projection", "", None, None)
#: All metrics by name, and the strength, which a record holds as a list with a number for each head.
METRIC_OF = {metric.name: metric for metric in (*METRICS, _STRENGTH)}
_LONGEST_NAME = 40
# Below this a mean cosine is "hardly" any: random directions in a head of 64 numbers have ± 0.125.
_LITTLE = 0.1
# Below this two mean cosines count as equal.
_SAME = 0.01


@dataclass(frozen=True)
class DiagnosedModel:
    """One of the models that a report is about.

    Args:
        name: the model's name in the report, different from the other model's.
        record: the content of its ``diagnostics.json``.
    """

    name: str
    record: Mapping[str, Any]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The layers of the record."""
        layers: list[dict[str, Any]] = self.record["layers"]
        return layers

    @property
    def depth(self) -> int:
        """How many self-attention layers the model has, including those that were left out."""
        return 1 + max((layer["layer"] for layer in self.layers), default=0)

    def metric(self, layer: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
        """A metric of a layer; ``None`` where it was not measured."""
        if name == "strength":
            heads = layer["strength"]
            return heads and {"mean": math.fsum(heads) / len(heads), "heads": heads}
        found = layer["metrics"].get(name)
        return None if found is None or number(found["mean"]) is None else found

    def means(self, name: str) -> list[float]:
        """The mean of a metric in each layer that has it."""
        return [float(found["mean"]) for layer in self.layers if (found := self.metric(layer, name)) is not None]

    def mean(self, name: str) -> float | None:
        """The mean of a metric over the layers that have it, each with the same weight."""
        means = self.means(name)
        return statistics.fmean(means) if means else None

    def reaching(self) -> float | None:
        """Mean cosine of the own value and what reaches the output projection, after any exclusive projection."""
        both = [self.metric(layer, "similarity_after") or self.metric(layer, "similarity") for layer in self.layers]
        found = [float(metric["mean"]) for metric in both if metric is not None]
        return statistics.fmean(found) if found else None

    def gaps(self) -> list[tuple[str, str, str]]:
        """What was not measured: the metric's title, the reason, and the layers."""
        places: dict[tuple[str, str], list[int]] = {}
        for metric in METRICS:
            for layer in self.layers:
                if self.metric(layer, metric.name) is None:
                    reason = layer["gaps"].get(metric.name, "nothing was counted")
                    places.setdefault((metric.title, reason), []).append(layer["layer"])
        every = [layer["layer"] for layer in self.layers]
        return [
            (title, reason, "all layers" if layers == every else spans(layers))
            for (title, reason), layers in places.items()
        ]


def diagnosed_models(*records: Mapping[str, Any]) -> list[DiagnosedModel]:
    """The models of a report, the one that it is about first, under names that differ."""
    full = [str(each["model"].get("name") or each["model"].get("class") or "model") for each in records]
    names = [shortened(name) for name in last_parts(full)]
    if len(names) == 2 and names[0] == names[1]:
        names = [f"{names[0]} (first)", f"{names[1]} (second)"]
    return [DiagnosedModel(name, record) for name, record in zip(names, records, strict=True)]


def diagnosis_headline(models: Sequence[DiagnosedModel]) -> str:
    """How much of the token's own value attention passes on, in at most twenty words."""
    for model in models:
        if model.mean("similarity") is None:
            return f"The similarity of outputs to own values could not be measured in {model.name}."
    if len(models) == 1:
        bias = models[0].mean("similarity") or 0.0
        points = "hardly points along" if abs(bias) < _LITTLE else "points away from" if bias < 0 else "points along"
        return f"Attention's output {points} the token's own value: mean cosine {shown(bias)}."
    first, second = (model.reaching() or 0.0 for model in models)
    gap = first - second
    more = "as much" if abs(gap) < _SAME else "less" if gap < 0 else "more"
    names = f"in {models[0].name} {'as' if abs(gap) < _SAME else 'than'} in {models[1].name}"
    return f"Attention passes on {more} of the token's own value {names}: {shown(first)} against {shown(second)}."


def qualifications(models: Sequence[DiagnosedModel]) -> str:
    """What stands below the headline."""
    similarities = [model.mean("similarity") for model in models]
    if None in similarities:
        gaps = models[similarities.index(None)].gaps()
        reasons = dict.fromkeys(reason for title, reason, _ in gaps if title == "Similarity to the own value")
        return f"The reason: {'; '.join(reasons)}." if reasons else ""
    has_after = any(model.means("similarity_after") for model in models)
    if len(models) == 2:
        reaching = [model.reaching() for model in models]
        parts = [f"Mean cosines of what reaches the output projection; they differ by {difference(*reaching)}"]
        if has_after:
            parts.append(f"Before any exclusive projection: {shown(similarities[0])} against {shown(similarities[1])}")
        return f"{'. '.join(parts)}."
    centred, weight = models[0].mean("centred_similarity"), models[0].mean("self_weight")
    parts = []
    if centred is not None:
        parts.append(f"Without the direction that all values share it is {shown(centred)}")
    if has_after:
        parts.append(
            f"The exclusive projection leaves {shown(models[0].reaching())} of it in what reaches the output projection"
        )
    elif weight is not None:
        parts.append(f"A token gives itself {weight:.0%} of its attention")
    return f"{'. '.join(parts)}." if parts else ""


def measured(models: Sequence[DiagnosedModel], names: Iterable[str]) -> list[str]:
    """The names among ``names`` of metrics that were measured in at least one layer."""
    return [name for name in names if any(model.means(name) for model in models)]


def last_parts(names: Sequence[str]) -> list[str]:
    """Shorten paths to the fewest last parts that differ: ``runs/a/model`` and ``runs/b/model`` to ``a/model``, …"""
    parts = [PurePath(name).parts or (name,) for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        tails = [str(PurePath(*each[-length:])) for each in parts]
        if len(set(tails)) == len(names):
            return tails
    return list(names)


def shortened(name: str) -> str:
    """A long name without its middle."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 3]}…{name[-(_LONGEST_NAME * 2 // 3 - 1) :]}"


def size_of(data: Mapping[str, Any]) -> str:
    """``2 sequences, 1,024 tokens``."""
    sequences = data.get("sequences")
    return f"{count(sequences)} sequence{'' if sequences == 1 else 's'}, {count(data.get('tokens'))} tokens"


def spans(layers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` → ``layers 0–2, 5``."""
    by_run = itertools.groupby(enumerate(layers), lambda numbered: numbered[1] - numbered[0])
    runs = [[layer for _, layer in run] for _, run in by_run]
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(parts)}"


def shown(value: object) -> str:
    """``0.4237`` → ``0.42``, ``12.34`` → ``12.3``, ``0.0042`` → ``0.0042``; ``0.00`` for the rounding of a zero."""
    amount = number(value)
    if amount is None:
        return MISSING
    size = abs(amount)
    if size < 5e-5:
        return "0.00"
    return fixed(amount, max(3, 1 - math.floor(math.log10(size)))) if size < 0.0995 else three_digits(amount)


def extent(values: Sequence[float]) -> str:
    """``0.19 to 0.46``: the least and the greatest value."""
    return " to ".join(dict.fromkeys((shown(min(values)), shown(max(values)))))


def difference(value: float | None, other: float | None) -> str:
    """The first less the second, with its sign; less than a thousandth of the numbers themselves is no difference."""
    if value is None or other is None:
        return MISSING
    gap = value - other
    text = shown(gap if abs(gap) >= 1e-3 * max(abs(value), abs(other)) else 0.0)
    return text if text.startswith("−") or text == "0.00" else f"+{text}"
