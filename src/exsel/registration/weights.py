"""What transformers found of a model's weights: all, or not."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from exsel.errors import LoadError


def check_weights(
    folder: str | PathLike[str], model: Any, info: Mapping[str, Any], *, may_miss_head: bool, may_have_other_head: bool
) -> None:
    """Check that a model has all weights of its folder, and the folder all of the model.

    Args:
        folder: where they are.
        model: as transformers loaded it.
        info: what it says of the weights.
        may_miss_head: whether the model's class is not the one that saved it, so that its head is new.
        may_have_other_head: whether weights of another head may be left, or a pooler's, as BERT's checkpoints have
            them: whatever belongs to none of the base model's layers.

    Raises:
        LoadError: some are missing, and transformers has put random numbers in their place, or some are left over.
    """

    def in_base(key: str) -> bool:
        first, _, _ = key.partition(".")
        return first == model.base_model_prefix or hasattr(model.base_model, first)

    def in_layer(key: str) -> bool:
        return in_base(key) and any(part.isdigit() for part in key.split("."))

    missing = sorted(key for key in info["missing_keys"] if not may_miss_head or in_base(key))
    unexpected = sorted(key for key in info["unexpected_keys"] if not may_have_other_head or in_layer(key))
    if missing:
        raise LoadError(f"{folder}: it lacks {len(missing)} weights, such as {missing[0]}")
    if unexpected:
        raise LoadError(
            f"{folder}: it has, and has no place for, {len(unexpected)} weights, such as {unexpected[0]}: its "
            "configuration is not the one that it was saved with"
        )
