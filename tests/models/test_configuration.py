"""The model's configuration: its defaults, its errors, and the named sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exsel import ExclusiveConfig, ExselConfig, ExselForCausalLM, SelectiveConfig
from exsel.models import SIZES
from models.small_models import small_config

#: What the attention kernels of serving engines take.
HEAD_SIZES = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256}


def count(size: str, *, embeddings: bool = False, vocab_size: int = 50257, **options: Any) -> int:
    with torch.device("meta"):
        model = ExselForCausalLM(ExselConfig(**SIZES[size], vocab_size=vocab_size, **options))
    total = sum(parameter.numel() for parameter in model.parameters())
    return total if embeddings else total - model.get_input_embeddings().weight.numel()


@pytest.mark.parametrize(("size", "billions"), [("0.7b", 0.68), ("1.4b", 1.41), ("2.7b", 2.68)])
def test_sizes_of_the_paper(size: str, billions: float) -> None:
    assert abs(count(size) / (billions * 1e9) - 1) < 0.02


def test_size_124m() -> None:
    assert abs(count("124m", embeddings=True) / 124e6 - 1) < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_head_sizes_that_kernels_take(size: str) -> None:
    assert SIZES[size]["head_dim"] in HEAD_SIZES


def test_size_25m() -> None:
    assert abs(count("25m", embeddings=False) / 25e6 - 1) < 0.02


def test_size_tiny() -> None:
    assert SIZES["tiny"].items() >= {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 6}.items()


@pytest.mark.parametrize(
    ("selective", "least", "most"),
    [
        (SelectiveConfig(), 0.0, 0.005),
        (SelectiveConfig(token="mlp"), 0.04, 0.065),
        (SelectiveConfig(token="linear"), 0.0, 0.005),
        (SelectiveConfig(token="frequency"), 0.0, 0.0001),
        (SelectiveConfig(token="constant"), 0.0, 0.0001),
        (SelectiveConfig(token="none"), 0.0, 0.0001),
    ],
    ids=["shared", "mlp", "linear", "frequency", "constant", "none"],
)
def test_new_parameters_of_selective(selective: SelectiveConfig, least: float, most: float) -> None:
    baseline = count("124m", embeddings=True)
    added = count("124m", embeddings=True, selective=selective) - baseline
    assert added > 0
    assert least <= added / baseline < most


def test_new_parameters_of_exclusive() -> None:
    baseline = count("tiny")
    assert count("tiny", exclusive=ExclusiveConfig()) == baseline
    assert count("tiny", exclusive=ExclusiveConfig(strength="learned")) == baseline + 4 * 6, "one a head"


class TestDefaults:
    def test_derived(self) -> None:
        config = ExselConfig(hidden_size=96, num_attention_heads=6, num_hidden_layers=2)
        assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (6, 16, 384)
        assert config.layer_types == ["full_attention"] * 2
        assert config.tie_word_embeddings
        assert config.exclusive is None
        assert config.selective is None

    @pytest.mark.parametrize(("hidden_size", "intermediate_size"), [(96, 256), (768, 2048), (100, 320)])
    def test_swiglu_width(self, hidden_size: int, intermediate_size: int) -> None:
        config = ExselConfig(hidden_size=hidden_size, head_dim=16, mlp="swiglu")
        assert config.intermediate_size == intermediate_size

    def test_sliding_window_is_of_every_layer_unless_said(self) -> None:
        assert small_config(sliding_window=4).layer_types == ["sliding_attention"] * 3
        kinds = ["full_attention", "sliding_attention", "full_attention"]
        assert small_config(sliding_window=4, layer_types=kinds).layer_types == kinds

    def test_dictionaries_become_configurations(self) -> None:
        config = small_config(exclusive={"strength": 0.5}, selective={"token": "mlp", "layers": [0, 2]})
        assert config.exclusive == ExclusiveConfig(strength=0.5)
        assert config.selective == SelectiveConfig(token="mlp", layers=(0, 2))

    def test_mechanism_of_a_layer(self) -> None:
        config = small_config(exclusive=ExclusiveConfig(layers="first:1"), selective=SelectiveConfig(layers=(-1,)))
        first, second, third = map(config.mechanisms_in, range(3))
        assert (first, second, third) == ((config.exclusive, None), (None, None), (None, config.selective))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"head_dim": None, "hidden_size": 30}, "hidden_size=30 must be a multiple of num_attention_heads=4"),
        ({"head_dim": 15}, "head_dim must be even for the rotary embedding, got 15"),
        ({"norm": "batchnorm"}, "norm must be 'layernorm' or 'rmsnorm', got 'batchnorm'"),
        ({"mlp": "relu"}, "mlp must be 'gelu' or 'swiglu', got 'relu'"),
        ({"sliding_window": 0}, "sliding_window must be at least 1"),
        ({"layer_types": ["sliding_attention"] * 3}, "give sliding_window"),
        ({"layer_types": ["full_attention"] * 2}, "layer"),
        ({"layer_types": ["full_attention", "linear", "full_attention"]}, "layer"),
        ({"exclusive": {"layers": "last:4"}}, "layers='last:4' names 4 layers, but the model has 3"),
        ({"selective": {"layers": [3]}}, "names layer 3, but the model has layers 0 to 2"),
        ({"exclusive": {"strenght": 1.0}}, "ExclusiveConfig has no field 'strenght'"),
        ({"selective": {"token": "nonsense"}}, "token must be one of"),
    ],
    ids=str,
)
def test_impossible_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**options)
