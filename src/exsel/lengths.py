"""How many tokens a model was made for, and how many it can take at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from exsel.errors import ExselError

if TYPE_CHECKING:
    from torch import nn

# Names under which configurations say how many tokens the model was made for.
_CONTEXT = ("max_position_embeddings", "max_seq_len", "seq_length", "n_ctx")
_POSITIONS = re.compile(r"pos|wpe", re.IGNORECASE)
# Some tables have a few rows more than there are positions.
_SPARE_ROWS = 8


def context_of(config: Any) -> int | None:
    """How many tokens a model of this configuration was made for; ``None``: it does not say."""
    config = _text_config(config)
    values = (getattr(config, name, None) for name in _CONTEXT)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def longest_sequence(model: nn.Module) -> int | None:
    """How many tokens a model has learned or tabulated positions for; ``None`` if it computes positions without end."""
    from torch import nn

    config = getattr(model, "config", None)
    context = context_of(config)
    if context is None or getattr(_text_config(config), "rope_parameters", None) is not None:
        return None
    limits = []
    # If padding has a position, the first token's position comes after it.
    rows = [
        (name, module.num_embeddings, 0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    rows += [(name, len(buffer), 0) for name, buffer in model.named_buffers() if buffer.ndim > 1]
    for name, count, before in rows:
        # Tables of relative distances have other sizes.
        if _POSITIONS.search(name) and context <= count < context + _SPARE_ROWS:
            limits.append(count - before)
    return min(context, *limits) if limits else None


def check_positions(model: nn.Module, tokens: int) -> None:
    """Check that a model has positions for ``tokens`` tokens."""
    limit = longest_sequence(model)
    if limit is not None and tokens > limit:
        raise ExselError(f"this model has positions for {limit} tokens, not for {tokens}: ask for fewer")


def check_context(context: int | None, tokens: int) -> None:
    """Check that a model of this context was made for ``tokens`` tokens: beyond it its outputs mean little."""
    if context is not None and tokens > context:
        raise ExselError(
            f"this model was made for {context} tokens, not for {tokens}: ask for fewer, or add --past-context to see "
            "what it makes of them"
        )


def check_length(model: nn.Module, tokens: int, *, past_context: bool) -> None:
    """Check that a model has positions for so many tokens and, without ``past_context``, was made for them."""
    check_positions(model, tokens)
    if not past_context:
        check_context(context_of(model.config), tokens)


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
