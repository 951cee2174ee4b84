from __future__ import annotations

from evidence.papers import model_variants
from evidence.papers.model_variants import EXCLUSIVE, ModelVariant, exclusive_in, sinks

ALL = [
    *(value for value in vars(model_variants).values() if isinstance(value, ModelVariant)),
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


def test_with_exclusive_keeps_what_is_put_in() -> None:
    both = sinks(4).with_exclusive()
    assert both.addition is not None
    assert both.exclusive == EXCLUSIVE.exclusive
    assert both.label == "4 sinks + exclusive"
    assert sinks(1).label == "1 sink"
