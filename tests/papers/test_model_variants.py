from __future__ import annotations

import pytest

from evidence.papers import model_variants
from evidence.papers.model_variants import (
    BASELINE,
    BOTH,
    EXCLUSIVE,
    OUTPUT_GATE,
    SELECTIVE,
    Variant,
    exclusive_in,
    sinks,
)
from exsel.variants import VARIANTS

ALL = [
    *(value for value in vars(model_variants).values() if isinstance(value, Variant)),
    *(sinks(count) for count in (1, 4)),
    *(exclusive_in(layers, f"in {layers}") for layers in ("first:1", "last:1", "last:2")),
]


def test_names_and_labels_are_different() -> None:
    both = [*ALL, *(variant.with_exclusive() for variant in ALL if variant.addition is not None)]
    assert len({variant.name for variant in both}) == len(both)
    assert len({variant.label for variant in both}) == len(both)


def test_no_two_variants_are_the_same() -> None:
    configs = [(v.exclusive, v.selective, None if v.addition is None else v.name) for v in ALL]
    assert len(set(configs)) == len(configs)


@pytest.mark.parametrize(
    ("variant", "mechanisms"),
    [
        (BASELINE, "baseline"),
        (EXCLUSIVE, "exclusive"),
        (SELECTIVE, "selective"),
        (BOTH, "exclusive+selective"),
        (OUTPUT_GATE, "baseline"),
        (OUTPUT_GATE.with_exclusive(), "exclusive"),
    ],
)
def test_the_mechanisms_of_a_variant_are_named_as_the_settings_name_them(variant: Variant, mechanisms: str) -> None:
    assert variant.mechanisms == mechanisms
    assert mechanisms in VARIANTS


def test_with_exclusive_keeps_what_is_put_in() -> None:
    both = sinks(4).with_exclusive()
    assert both.addition is not None
    assert both.exclusive == EXCLUSIVE.exclusive
    assert both.label == "4 sinks + exclusive"
    assert sinks(1).label == "1 sink"
