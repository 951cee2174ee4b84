"""Numbers of a diagnosis, as its page asks for them. Needs nothing but Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.metrics import METRICS
from exsel.report.formatting import MISSING, fixed, number, three_digits
from exsel.report.formatting import count as whole

#: By name, every metric.
CATALOGUE = {metric.name: metric for metric in METRICS}

_LONGEST_NAME = 40


@dataclass(frozen=True)
class DiagnosedModel:
    """One of the models that a report is about.

    Args:
        name: of the model, different from the other's.
        diagnosis: what was found in it.
    """

    name: str
    diagnosis: Diagnosis

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Of the diagnosis."""
        return self.diagnosis.layers

    def metric(self, layer: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
        """What was measured in a layer; ``None``: a gap, or nothing that was counted."""
        found = layer["metrics"].get(name)
        return None if found is None or number(found["mean"]) is None else found

    def means(self, name: str) -> list[float]:
        """A metric's mean in each layer that has it."""
        return [float(found["mean"]) for layer in self.layers if (found := self.metric(layer, name)) is not None]

    def mean(self, name: str) -> float | None:
        """A metric's mean over the layers that have it; each counts alike."""
        means = self.means(name)
        return statistics.fmean(means) if means else None

    def reaching(self) -> float | None:
        """Mean cosine of what reaches the output projection and the own value.

        That is after the exclusive projection where there is one, and attention's own output where there is none.
        """
        found = [
            float(metric["mean"])
            for layer in self.layers
            if (metric := self.metric(layer, "similarity_after") or self.metric(layer, "similarity")) is not None
        ]
        return statistics.fmean(found) if found else None

    def gaps(self) -> list[tuple[str, str, str]]:
        """What was not measured: the metric's title, why, and in which layers."""
        places: dict[tuple[str, str], list[int]] = {}
        for metric in METRICS:
            for layer in self.layers:
                reason = layer["gaps"].get(metric.name)
                if reason is None and self.metric(layer, metric.name) is None:
                    reason = "nothing was counted"
                if reason is not None:
                    places.setdefault((metric.name, reason), []).append(layer["layer"])
        every = [layer["layer"] for layer in self.layers]
        return [
            (CATALOGUE[name].title, reason, "all layers" if layers == every else spans(layers))
            for (name, reason), layers in places.items()
        ]


def diagnosed_models(diagnosis: Diagnosis, against: Diagnosis | None = None) -> list[DiagnosedModel]:
    """The models of a report, the one that it is about first, under names that differ."""
    given = [diagnosis] if against is None else [diagnosis, against]
    full = [str(each.model.get("name") or each.model.get("class") or "model") for each in given]
    names = [shortened(name) for name in last_parts(full)]
    if len(names) == 2 and names[0] == names[1]:
        names = [f"{name} ({place})" for name, place in zip(names, ("first", "second"), strict=True)]
    return [DiagnosedModel(name, each) for name, each in zip(names, given, strict=True)]


def last_parts(names: Sequence[str]) -> list[str]:
    """The last parts of paths, as few as tell them apart: ``runs/a/model`` and ``runs/b/model`` are ``a/model`` …"""
    parts = [PurePath(name).parts or (name,) for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        tails = [str(PurePath(*each[-count:])) for each in parts]
        if len(set(tails)) == len(names):
            return tails
    return list(names)


def measured(sides: Sequence[DiagnosedModel], names: Iterable[str]) -> list[str]:
    """Those of the metrics that some layer of some model has."""
    return [name for name in names if any(side.means(name) for side in sides)]


def size_of(data: Mapping[str, Any]) -> str:
    """How much was read: ``2 sequences, 1,024 tokens``."""
    sequences = data.get("sequences")
    return f"{whole(sequences)} sequence{'' if sequences == 1 else 's'}, {whole(data.get('tokens'))} tokens"


def buckets_of(sides: Sequence[DiagnosedModel]) -> list[dict[str, int]]:
    """The buckets of positions of the model with the longest sequence, the last one as long as that is."""
    longest = max(sides, key=lambda side: len(side.diagnosis.buckets)).diagnosis
    end = int(longest.data.get("longest") or longest.buckets[-1]["last"]) if longest.buckets else 0
    return [{"first": each["first"], "last": min(each["last"], end)} for each in longest.buckets]


def bucket_label(bucket: Mapping[str, int]) -> str:
    """``4–7``."""
    first, last = bucket["first"], bucket["last"]
    return str(first) if first == last else f"{first}–{last}"


def same_text(sides: Sequence[DiagnosedModel]) -> bool:
    """Whether all models read the same tokens, as far as the pictures show."""
    texts = [[picture["tokens"] for picture in side.diagnosis.pictures] for side in sides]
    counts = [(side.diagnosis.data.get("sequences"), side.diagnosis.data.get("tokens")) for side in sides]
    return all(text == texts[0] for text in texts) and len(set(counts)) == 1


def spans(layers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` → ``layers 0–2, 5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(parts)}"


def shortened(name: str) -> str:
    """A name with its middle left out where it is long; the ends tell paths apart."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 3]}…{name[-(_LONGEST_NAME * 2 // 3 - 1) :]}"


def shown(value: object) -> str:
    """``0.4237`` → ``0.42``, ``12.34`` → ``12.3``, ``0.0042`` → ``0.0042``, and a dash for nothing.

    What rounds to 0.0000 is the rounding of a zero.
    """
    amount = number(value)
    if amount is None:
        return MISSING
    size = abs(amount)
    if size < 5e-5:
        return "0.00"
    if size < 0.0995:
        return fixed(amount, max(3, 1 - math.floor(math.log10(size))))
    return three_digits(amount)


def extent(values: Sequence[float]) -> str:
    """``0.19 to 0.46``, from the least to the most."""
    return " to ".join(dict.fromkeys((shown(min(values)), shown(max(values)))))


def difference(value: float | None, other: float | None) -> str:
    """How much more the first is, with its sign; a dash where one is missing.

    Less than a thousandth of the numbers themselves is no difference: they are shown to three digits.
    """
    if value is None or other is None:
        return MISSING
    gap = value - other
    text = shown(gap if abs(gap) >= 1e-3 * max(abs(value), abs(other)) else 0.0)
    return text if text.startswith("−") or text == "0.00" else f"+{text}"
