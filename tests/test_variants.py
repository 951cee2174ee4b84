from __future__ import annotations

import re
from pathlib import Path

import pytest

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import ExselError
from exsel.variants import VARIANTS, Variant, choose_variants

RECIPES = """
[half]
exclusive = 0.5

[queries]
selective = {value = false, layers = "last:2"}
lr = [1e-3, 3e-3]
token-lr = 1e-2

[baseline]
lr = 1e-4
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(RECIPES, encoding="utf-8")
    return path


def test_a_variant_is_named_as_its_mechanisms() -> None:
    assert all(name == variant.name == variant.kind for name, variant in VARIANTS.items())
    assert Variant(name="half", exclusive=ExclusiveConfig(strength=0.5)).kind == "exclusive"


def test_the_control_is_the_selective_variant_without_selection() -> None:
    (control,) = choose_variants(["constant"], selective={"layers": "last:1", "value": False})
    assert control == Variant(
        name="constant",
        selective=SelectiveConfig(layers="last:1", value=False, token="constant", position=False, value_position=False),
    )
    with pytest.raises(ExselError, match="--selective false contradicts --variant constant"):
        choose_variants(["constant"], selective=False)


def test_recipes_stand_beside_names(recipes: Path) -> None:
    exclusive, half, queries, baseline = choose_variants(["exclusive", str(recipes)], exclusive={"layers": "last:1"})
    assert exclusive == Variant(name="exclusive", exclusive=ExclusiveConfig(layers="last:1"))
    assert half == Variant(name="half", exclusive=ExclusiveConfig(strength=0.5))
    assert queries == Variant(
        name="queries",
        selective=SelectiveConfig(value=False, layers="last:2"),
        learning_rates=(1e-3, 3e-3),
        token_learning_rate=1e-2,
    )
    assert baseline == Variant(name="baseline", learning_rates=(1e-4,))
    assert choose_variants([f"{recipes}:half"]) == [half]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no recipe: begin one with [name]"),
        ("[a", "are not TOML"),
        ("a = 1", "recipe a: it must be a table [a] with one or more of exclusive, selective, lr, token-lr, posi"),
        ("[a]", "recipe a: it must be a table"),
        ("[a]\nexclusiv = 1", "recipe a has 'exclusiv', and a recipe takes exclusive"),
        ("[a]\nexclusive = {strenght = 1}", "recipe a: ExclusiveConfig has no field 'strenght'"),
        ("[a]\nselective = 1", "recipe a: selective must be None, True"),
        ("[a]\nlr = 0", "recipe a: a learning rate of a must be a positive number, got 0"),
        ("[a]\nlr = ['1']", "a learning rate of a must be a positive number, got '1'"),
        ("[a]\nposition-lr = true", "a learning rate of a must be a positive number, got True"),
        ("['a/b']\nexclusive = 1", "'a/b' cannot name a variant"),
        ("[baseline]\nexclusive = 1", "recipe baseline is exclusive, not baseline: give it a name of its own"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ExselError, match=re.escape(message)):
        choose_variants([str(path)])


def test_what_names_no_variant(recipes: Path) -> None:
    with pytest.raises(
        ExselError, match=r"no variant is called 'sparse': choose from baseline, .* constant, or name a \.toml"
    ):
        choose_variants(["sparse"])
    with pytest.raises(ExselError, match=r"none\.toml cannot be read: No such file"):
        choose_variants(["none.toml"])
    with pytest.raises(ExselError, match="has no recipe 'third'; it has half, queries, baseline"):
        choose_variants([f"{recipes}:third"])
