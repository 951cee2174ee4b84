"""Made-up diagnoses with the shape of diagnostics.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.diagnosis_report.diagnosed_models import DiagnosedModel, diagnosed_models
from exsel.diagnostics.metrics import METRICS, PICTURED

WORDS = ("def", " attend", "(", "query", ")", ":", "\n", "\t", "return", " größer", "", "�")
TEMPERATURES = ("query_temperature", "key_temperature", "value_temperature")
HOSTILE = "</script><img src=x onerror='window.hit = 1'>{{ 7*7 }}<!--"


def models_of(diagnosis: Diagnosis, against: Diagnosis | None = None) -> list[DiagnosedModel]:
    """The models of a report."""
    return diagnosed_models(*(each.to_dict() for each in (diagnosis, against) if each is not None))


def build(
    *,
    layers: int = 3,
    heads: int = 2,
    upgraded: bool = False,
    name: str = "plain",
    words: Sequence[str] = WORDS,
    lacking: Sequence[int] = (),
    shift: float = 0.0,
) -> Diagnosis:
    """A diagnosis; in ``lacking`` layers nothing is known of the weights, and ``shift`` moves every number."""
    return Diagnosis(
        exsel_version="0.1.0",
        model={"name": name, "class": "SomeModel", "parameters": 1_234_567, "context": 512},
        data={"description": "some text", "sequences": 2, "tokens": 40, "longest": 20},
        machine={"device": "cpu", "memory_bytes": 2**34},
        command=f"exsel diagnose {name}",
        buckets=[{"first": 2**k, "last": 2 ** (k + 1) - 1} for k in range(5)],
        layers=[_layer(index, heads, upgraded, index in lacking, shift) for index in range(layers)],
        left_out=[],
        notes=[],
        pictures=[_picture(words, layers, heads, upgraded, shift)],
    )


def _layer(index: int, heads: int, upgraded: bool, lacks: bool, shift: float) -> dict[str, Any]:
    gaps = {} if upgraded else dict.fromkeys(TEMPERATURES, "no temperatures")
    if not upgraded:
        gaps["similarity_after"] = "no exclusive projection"
    if lacks:
        gaps |= dict.fromkeys(("self_weight", "spikiness", "entropy", "effective_tokens"), "weights out of sight")
    metrics = {}
    for place, metric in enumerate(METRICS):
        if metric.name in gaps:
            continue
        values = [0.2 + shift + 0.03 * place + 0.05 * math.sin(index + head + place) for head in range(heads)]
        if metric.name == "similarity_after":
            values = [1e-10] * heads
        mean = math.fsum(values) / heads
        buckets = [] if metric.name == "operator_norm" else [mean / (k + 1) for k in range(5)]
        metrics[metric.name] = {
            "mean": mean,
            "least": min(values) - 0.1,
            "most": max(values) + 0.1,
            "heads": values,
            "buckets": buckets,
            "head_buckets": [buckets] * heads if buckets else [],
        }
    return {
        "layer": index,
        "name": f"model.layers.{index}.self_attn",
        "class": "SomeAttention",
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": 8,
        "is_causal": True,
        "strength": [1.0] * heads if upgraded else None,
        "metrics": metrics,
        "gaps": gaps,
    }


def _picture(words: Sequence[str], layers: int, heads: int, upgraded: bool, shift: float) -> dict[str, Any]:
    names = [name for name in PICTURED if upgraded or name not in TEMPERATURES]
    return {
        "tokens": list(words),
        "positions": list(range(1, len(words) + 1)),
        "layers": [
            {
                "layer": layer,
                "values": {
                    name: [
                        [shift + 0.3 + 0.2 * math.sin(1.7 * token + layer + head) for token in range(len(words))]
                        for head in range(heads)
                    ]
                    for name in names
                },
            }
            for layer in range(layers)
        ],
    }
