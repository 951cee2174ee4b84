from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from exsel import ExclusiveConfig, SelectiveConfig
from exsel.config import Layers, resolve_layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", {0, 1, 2, 3}),
        ("first:1", {0}),
        ("first:4", {0, 1, 2, 3}),
        ("last:1", {3}),
        ("last:3", {1, 2, 3}),
        ((0, 2), {0, 2}),
        ((-1,), {3}),
        ((-4, 3, 3), {0, 3}),
        (3, {3}),
        (-1, {3}),
    ],
)
def test_resolve_layers(layers: Layers, expected: set[int]) -> None:
    assert resolve_layers(layers, 4) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("first:5", "layers='first:5' names 5 layers, but the model has 4"),
        ("last:12", "names 12 layers, but the model has 4"),
        ((0, 4), "names layer 4, but the model has layers 0 to 3"),
        ((-5,), "names layer -5"),
    ],
)
def test_resolve_layers_beyond_the_model(layers: Layers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_layers(layers, 4)


@pytest.mark.parametrize("config_class", [ExclusiveConfig, SelectiveConfig])
@pytest.mark.parametrize(
    "layers",
    ["", "none", "first", "first:", "first:0", "last:-1", "last:1.5", " all", (), [], [0.5], [True], None, 3.0, True],
)
def test_impossible_layers(config_class: type[ExclusiveConfig] | type[SelectiveConfig], layers: Any) -> None:
    with pytest.raises(ValueError, match="layers must be 'all'"):
        config_class(layers=layers)


CONFIGS = [
    ExclusiveConfig(),
    ExclusiveConfig(layers="last:2", strength="learned"),
    ExclusiveConfig(layers=(0, -1), strength=0.5),
    SelectiveConfig(),
    SelectiveConfig(
        layers=(1,),
        query=False,
        key=True,
        value=False,
        token="frequency",
        position=False,
        value_position=False,
        per_head=False,
        position_per_head=False,
        position_init=0.25,
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_through_json(config: ExclusiveConfig | SelectiveConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    assert values == config.to_dict()
    assert values.keys() == {field.name for field in dataclasses.fields(config)}
    assert type(config).from_dict(values) == config
    assert hash(type(config).from_dict(values)) == hash(config)


@pytest.mark.parametrize("config_class", [ExclusiveConfig, SelectiveConfig])
def test_from_dict_takes_what_is_left_out_from_the_defaults(
    config_class: type[ExclusiveConfig] | type[SelectiveConfig],
) -> None:
    assert config_class.from_dict({}) == config_class()


def test_from_dict_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="ExclusiveConfig has no field 'strenght'; it has layers, strength"):
        ExclusiveConfig.from_dict({"strenght": 1.0})
    with pytest.raises(ValueError, match="SelectiveConfig has no field 'strength'"):
        SelectiveConfig.from_dict({"strength": 1.0})


@pytest.mark.parametrize("config", CONFIGS)
def test_frozen(config: ExclusiveConfig | SelectiveConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = "all"  # type: ignore[misc]


@pytest.mark.parametrize("config_class", [ExclusiveConfig, SelectiveConfig])
def test_keyword_only(config_class: Any) -> None:
    with pytest.raises(TypeError):
        config_class("all")


@pytest.mark.parametrize("strength", ["fixed", None, float("nan"), float("inf"), -float("inf"), True, [1.0]])
def test_impossible_strength(strength: Any) -> None:
    with pytest.raises(ValueError, match="strength must be a finite number or 'learned'"):
        ExclusiveConfig(strength=strength)


def test_an_integer_strength_is_a_number() -> None:
    config = ExclusiveConfig(strength=1)
    assert config == ExclusiveConfig()
    assert type(config.strength) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"query": 1}, "query must be True or False, got 1"),
        ({"key": None}, "key must be True or False"),
        ({"value": "yes"}, "value must be True or False"),
        ({"position": 0}, "position must be True or False"),
        ({"value_position": 0}, "value_position must be True or False"),
        ({"per_head": "all"}, "per_head must be True or False"),
        ({"position_per_head": 12}, "position_per_head must be True or False"),
        ({"token": "attention"}, "token must be one of shared, mlp, frequency, none; got 'attention'"),
        ({"token": None}, "token must be one of"),
        ({"query": False, "value": False}, "at least one of query, key and value"),
        ({"token": "none", "position": False, "value_position": False}, "leaves every temperature at 1"),
        ({"token": "none", "query": False, "value_position": False}, "leaves every temperature at 1"),
        ({"token": "none", "position": False, "value": False}, "leaves every temperature at 1"),
        ({"position_init": 0.0}, r"position_init is σ\(a\) and must lie in \(0, 1\), got 0.0"),
        ({"position_init": 1.0}, "position_init"),
        ({"position_init": 1}, "position_init"),
        ({"position_init": float("nan")}, "position_init"),
    ],
)
def test_impossible_selective(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveConfig(**values)
