"""A pass of an attention layer, with nothing put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LayerPass:
    """The places that :class:`exsel.nn.mechanisms.MechanismPass` has in a layer, with nothing put into them."""

    def project(self, name: str, module: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``module(…)``."""
        return module(*args, **kwargs)

    def update(self, cache: Any, *args: Any, **kwargs: Any) -> Any:
        """``cache.update(…)``."""
        return cache.update(*args, **kwargs)

    def attend(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``function(…)``."""
        return function(*args, **kwargs)

    sdpa = attend
    sdpa_tokens_first = attend

    def mixed(self, result: Any) -> Any:
        """``result``."""
        return result

    end = mixed
    end_mixed = mixed
