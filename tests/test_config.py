from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import exsel
from exsel import ExclusiveConfig, SelectiveConfig
from exsel.cli.training import add_training_arguments, mechanism_flags
from exsel.config import Layers, resolve_layers
from exsel.peft import ExclusiveAdapterConfig, SelectiveAdapterConfig
from exsel.training.settings import Settings
from exsel.upgrading.rewriting import CHILD
from exsel.variants import Variant, choose_variants


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
        (
            {"token": "attention"},
            "token must be one of shared, mlp, linear, frequency, constant, none; got 'attention'",
        ),
        ({"token": None}, "token must be one of"),
        ({"position_form": "log"}, "position_form must be one of sigmoid, double_exponential; got 'log'"),
        ({"query": False, "value": False}, "at least one of query, key and value"),
        ({"token": "none", "position": False, "value_position": False}, "leaves every temperature at 1"),
        ({"token": "none", "query": False, "value_position": False}, "leaves every temperature at 1"),
        ({"token": "none", "position": False, "value": False}, "leaves every temperature at 1"),
        ({"position_init": 0.0}, r"position_init is c\(a\) and must lie in \(0, 1\), got 0.0"),
        ({"position_init": 1.0}, "position_init"),
        ({"position_init": 1}, "position_init"),
        ({"position_init": float("nan")}, "position_init"),
    ],
)
def test_impossible_selective(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveConfig(**values)


OTHER = {"exclusive": "selective", "selective": "exclusive"}
DEPTH = 2


def through_layer(mechanism: str, value: Any) -> Any:
    """A single layer has no ``layers``: what it says is of all."""
    layer = exsel.nn.SelfAttention(8, 2, **{OTHER[mechanism]: True, mechanism: value})
    if mechanism == "exclusive":
        return None if layer.exclusive is None else ExclusiveConfig(strength=layer.exclusive.strength)
    if not layer.temperatures:
        return None
    found = {name: getattr(layer.temperatures["query"], name) for name in ("token", "position_form")}
    return SelectiveConfig(key="key" in layer.temperatures, **found)


def through_config(mechanism: str, value: Any) -> Any:
    return getattr(exsel.ExselConfig(**{mechanism: value}, num_hidden_layers=DEPTH), mechanism)


def through_config_of_a_folder(mechanism: str, value: Any) -> Any:
    """As ``from_pretrained(folder, exclusive=…)`` has it."""
    values = exsel.ExselConfig(num_hidden_layers=DEPTH).to_dict()
    return getattr(exsel.ExselConfig.from_dict(values, **{mechanism: value}), mechanism)


def through_upgrade(mechanism: str, value: Any) -> Any:
    model = nn.ModuleList([nn.MultiheadAttention(8, 2) for _ in range(DEPTH)])
    exsel.upgrade(model, **{OTHER[mechanism]: True, mechanism: value})
    found = [getattr(layer.get_submodule(CHILD), f"{mechanism}_config") for layer in model]
    chosen = [index for index, config in enumerate(found) if config is not None]
    return next((found[index] for index in chosen if resolve_layers(found[index].layers, DEPTH) == set(chosen)), None)


def through_adapter(mechanism: str, value: Any) -> Any:
    if mechanism == "exclusive":
        return SelectiveAdapterConfig(exclusive=value).mechanisms()[0]
    config = SelectiveConfig.read(value)
    return None if config is None else SelectiveAdapterConfig(**config.to_dict()).mechanisms()[1]


def through_settings(mechanism: str, value: Any) -> Any:
    variant = Variant(name="own", **{mechanism: value})
    settings = Settings(
        variant=variant, model="tiny", seed=0, learning_rate=0.1, tokens=64, seq_len=8, batch_size=8, warmup_steps=0
    )
    config = variant.mechanisms[mechanism]
    assert json.loads(json.dumps(settings.to_dict()))[mechanism] == (None if config is None else config.to_dict())
    return config


def through_flag(mechanism: str, *words: str) -> Any:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    arguments = parser.parse_args(["--device", "cpu", *([f"--{mechanism}", *words] if words else [])])
    return mechanism_flags(arguments)[mechanism]


DOORS: list[Callable[[str, Any], Any]] = [
    through_layer,
    through_config,
    through_config_of_a_folder,
    through_upgrade,
    through_adapter,
    through_settings,
]
LEARNED, HALF = ExclusiveConfig(strength="learned"), ExclusiveConfig(strength=0.5)
#: A mechanism, what says it in Python, as words on the command line, and what it means.
GIVEN: list[tuple[str, list[Any], list[str], Any]] = [
    ("exclusive", [None, False], ["false", "False"], None),
    ("exclusive", [True, 1, 1.0, {}, {"strength": 1}, ExclusiveConfig()], ["true", "1", "1.0", ""], ExclusiveConfig()),
    ("exclusive", ["learned", LEARNED, LEARNED.to_dict()], ["learned", "strength=learned"], LEARNED),
    ("exclusive", [0.5, HALF, {"strength": 0.5}], ["0.5", ".5", "strength=0.5", "strength=0.5 layers=all"], HALF),
    ("exclusive", [0], ["0", "strength=0"], ExclusiveConfig(strength=0.0)),
    ("exclusive", [{"layers": 1}, {"layers": [1]}], ["layers=1", "layers=1,1"], ExclusiveConfig(layers=(1,))),
    ("exclusive", [{"layers": -1}], ["layers=-1"], ExclusiveConfig(layers=(-1,))),
    ("exclusive", [{"layers": (0, 1)}], ["layers=0,1", "layers=0,-1"], ExclusiveConfig(layers=(0, 1))),
    ("exclusive", [{"layers": "last:1"}], ["layers=last:1"], ExclusiveConfig(layers="last:1")),
    ("selective", [None, False], ["false"], None),
    ("selective", [True, {}, SelectiveConfig()], ["true", ""], SelectiveConfig()),
    (
        "selective",
        [{"key": True}, SelectiveConfig(key=True)],
        ["key=true", "key=TRUE query=true"],
        SelectiveConfig(key=True),
    ),
    *(
        (
            "selective",
            [form, SelectiveConfig(**form)],
            [" ".join("=".join(it) for it in form.items())],
            SelectiveConfig(**form),
        )
        for form in ({"token": "constant"}, {"token": "linear", "position_form": "double_exponential"})
    ),
    ("selective", [{"layers": 1}, SelectiveConfig(layers=1)], ["layers=1"], SelectiveConfig(layers=[1])),
]


@pytest.mark.parametrize(("mechanism", "values", "commands", "meaning"), GIVEN)
def test_a_mechanism_is_the_same_at_every_door(
    mechanism: str, values: list[Any], commands: list[str], meaning: Any
) -> None:
    for value in values:
        for door in DOORS:
            if door is through_layer and meaning is not None and meaning.layers != "all":
                with pytest.raises(exsel.ExselError, match="this is one: leave it out"):
                    door(mechanism, value)
            else:
                assert door(mechanism, value) == meaning, (door.__name__, value)
    for words in commands:
        found = through_flag(mechanism, *words.split(" ")) if words else through_flag(mechanism)
        same_layers = meaning is None or resolve_layers(found.layers, DEPTH) == resolve_layers(meaning.layers, DEPTH)
        assert same_layers, words
        assert meaning is None or dataclasses.replace(found, layers=meaning.layers) == meaning, words
        assert (found is None) == (meaning is None), words


@pytest.mark.parametrize(
    ("mechanism", "value", "kind"),
    [
        ("exclusive", "strong", exsel.ExselError),
        ("exclusive", float("nan"), exsel.ExselError),
        pytest.param("exclusive", 10**5000, exsel.ExselError, id="huge"),
        ("exclusive", {"strenght": 1}, exsel.ExselError),
        ("exclusive", {"strength": False}, exsel.ExselError),
        ("exclusive", {"layers": 1.0}, exsel.ExselError),
        pytest.param("exclusive", {"layers": f"first:{'9' * 5000}"}, exsel.ExselError, id="far"),
        ("exclusive", [1], TypeError),
        ("exclusive", SelectiveConfig(), TypeError),
        ("exclusive", ExclusiveConfig, TypeError),
        ("selective", 1.0, TypeError),
        ("selective", "shared", TypeError),
        ("selective", ExclusiveConfig(), TypeError),
        ("selective", {"token": "magic"}, exsel.ExselError),
    ],
)
def test_what_is_no_mechanism_is_refused_alike_at_every_door(mechanism: str, value: Any, kind: type[Exception]) -> None:
    messages = set()
    for door in DOORS:
        with pytest.raises(kind) as found:
            door(mechanism, value)
        messages.add(str(found.value))
    assert len(messages) == 1
    assert len(messages.pop()) < 250


@pytest.mark.parametrize(
    ("mechanism", "words", "message"),
    [
        ("exclusive", ["strong"], "--exclusive: strength must be a finite number or 'learned', got 'strong'"),
        pytest.param("exclusive", ["9" * 5000], "--exclusive: strength must be a finite number", id="huge"),
        ("exclusive", ["learned", "layers=1"], "--exclusive takes true, false or NAME=VALUE, each name once; got 'lea"),
        ("exclusive", ["layers=1", "layers=0"], "--exclusive takes true, false or NAME=VALUE, each name once"),
        ("exclusive", ["1,2"], "--exclusive takes"),
        ("exclusive", ["layers=--1,2"], "--exclusive: layers must be 'all', 'first:k', 'last:k', an index or a list"),
        ("exclusive", ["layers=3.0"], "--exclusive: layers must be"),
        ("exclusive", ["layers="], "--exclusive: layers must be"),
        ("exclusive", ["=1"], "--exclusive: ExclusiveConfig has no field ''"),
        ("selective", ["mlp"], "--selective takes true, false or NAME=VALUE, each name once; got 'mlp'"),
        ("selective", ["position_init=1"], "--selective: position_init is c(a) and must lie in (0, 1), got 1"),
    ],
)
def test_what_is_no_mechanism_on_the_command_line(mechanism: str, words: list[str], message: str) -> None:
    with pytest.raises(exsel.ExselError) as found:
        through_flag(mechanism, *words)
    assert str(found.value).startswith(message)
    assert len(str(found.value)) < 250


def test_off_contradicts_a_variant_that_has_it() -> None:
    with pytest.raises(exsel.ExselError, match="--exclusive false contradicts --variant exclusive"):
        choose_variants(["baseline", "exclusive"], exclusive=None)


def test_an_adapters_configuration_is_named_as_what_it_is() -> None:
    assert {ExclusiveAdapterConfig.__name__, SelectiveAdapterConfig.__name__}.isdisjoint(dir(exsel))
    assert not {"ExclusiveConfig", "SelectiveConfig"} & set(dir(exsel.peft))
