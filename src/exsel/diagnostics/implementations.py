"""Attention implementations of which one can see what they mix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

#: Those that are told everything that changes the scores, by arguments that one can read.
_READABLE = ("sdpa", "eager")


@contextmanager
def watchable_implementations(model: nn.Module) -> Iterator[None]:
    """Have every part of a transformers model attend with ``sdpa`` or ``eager`` for the time."""
    changed: list[tuple[Any, str]] = []
    has_sdpa = False
    for module in model.modules():
        has_sdpa = getattr(type(module), "_supports_sdpa", has_sdpa)
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation_internal", None)
        if implementation is not None and implementation not in _READABLE:
            changed.append((config, implementation))
            # The configuration's own property would set those of its parts as well.
            config._attn_implementation_internal = "sdpa" if has_sdpa else "eager"  # type: ignore[union-attr]
    try:
        yield
    finally:
        for config, implementation in changed:
            config._attn_implementation_internal = implementation
