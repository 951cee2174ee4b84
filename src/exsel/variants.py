"""The variants of a model that training and comparing know by name."""

from __future__ import annotations

from collections.abc import Mapping

#: The model without either mechanism, which every other variant is compared with.
BASELINE = "baseline"

#: The mechanisms of each variant, in the order in which they are compared.
VARIANTS: Mapping[str, frozenset[str]] = {
    BASELINE: frozenset(),
    "exclusive": frozenset({"exclusive"}),
    "selective": frozenset({"selective"}),
    "exclusive+selective": frozenset({"exclusive", "selective"}),
}
