"""Models of many types: what is found is found with verified weights, and the model is left as it was."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import exsel
from evidence.survey.zoo import build_small_model
from exsel.diagnostics.metrics import METRICS

#: By type: how many of its layers are watched, and whether their weights are to be seen.
TYPES = {
    "llama": (2, True),
    "gpt_neox": (2, True),
    "falcon": (2, False),
    "gpt_oss": (2, True),
    "mpt": (2, False),
    "phi3": (2, True),
    "gemma3_text": (2, True),
    "bert": (2, True),
    "deberta-v2": (2, False),
    "modernbert": (2, True),
    "t5": (4, True),
    "whisper": (4, True),
    "vit": (2, True),
    "swin": (6, True),
    "clip": (4, True),
}


def tensors(output: Any) -> list[Tensor]:
    return [each for each in output.values() if isinstance(each, Tensor)]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_models_of_many_types(model_type: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' about the small configurations
        specimen = build_small_model(model_type)
        before = tensors(specimen.model(**specimen.inputs))
        diagnosis = exsel.diagnose(specimen.model, [specimen.inputs])
        after = tensors(specimen.model(**specimen.inputs))
    assert all(map(torch.equal, before, after))
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    num_layers, has_weights = TYPES[model_type]
    assert len(diagnosis.layers) == num_layers
    for layer in diagnosis.layers:
        assert ("self_weight" in layer["metrics"]) == has_weights
        assert "similarity" in layer["metrics"]
        for metric in METRICS:
            found = layer["metrics"].get(metric.name)
            if found is not None:
                assert metric.low is None or found["least"] >= metric.low
                assert metric.high is None or found["most"] <= metric.high
