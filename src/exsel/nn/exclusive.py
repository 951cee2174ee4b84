"""Exclusive self-attention's projection as a module: its strength, and how that is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exsel.config import ExclusiveConfig
from exsel.errors import LoadError
from exsel.functional import exclude
from exsel.nn.scalars import Scalars


class Exclusive(Scalars):
    """Exclusive self-attention's projection as a module: :func:`exsel.exclude` with a fixed or learned strength.

    A fixed strength is saved in the state dict too. Loading it into a module of another strength is an error.

    Args:
        num_heads: H, of the queries.
        strength: α for every head, or ``"learned"``: tanh(γ) a head from γ = 0, where the layer starts as plain
            attention.

    Attributes:
        fixed_strength: a fixed strength as text in UTF-8, uint8 ``[24]``, which a change of dtype does not round.

    Raises:
        ExselError: any other strength.

    Source: Zhai, arXiv:2603.09078 (2026). The learned strength is follow-up work.
    """

    __call__: Callable[..., Tensor]
    strength_logit: nn.Parameter | None
    fixed_strength: Tensor | None

    def __init__(self, num_heads: int, strength: float | Literal["learned"] = 1.0) -> None:
        super().__init__()
        self.strength = ExclusiveConfig(strength=strength).strength
        self.register_parameter("strength_logit", self.empty(num_heads) if self.strength == "learned" else None)
        self.register_buffer("fixed_strength", None if self.strength == "learned" else self.as_text())
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """γ = 0."""
        if self.strength_logit is not None:
            nn.init.zeros_(self.strength_logit)

    def as_text(self) -> Tensor:
        """The tensor :attr:`fixed_strength`."""
        return torch.tensor(list(f"{self.strength:<24}".encode()), dtype=torch.uint8)

    def contradiction(self, loaded: Tensor | None = None) -> str:
        """Why ``loaded`` (by default the buffer) is not the module's own strength; empty if it is."""
        loaded = self.fixed_strength if loaded is None else loaded
        if loaded is None or loaded.is_meta:
            return ""
        text = bytes(loaded.flatten().to(torch.uint8).tolist()).decode(errors="replace").strip()
        is_own = text == str(self.strength)
        return "" if is_own else f"was saved with a strength of {text!r}, and has {self.strength} here"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Add an error for another strength to the list of errors, which is the last argument."""
        loaded = state_dict.get(f"{prefix}fixed_strength")
        if self.fixed_strength is not None and loaded is not None and (reason := self.contradiction(loaded)):
            args[-1].append(f"{prefix.removesuffix('.') or 'Exclusive'} {reason}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, y: Tensor, own_value: Tensor) -> Tensor:
        """y ``[B, H, T, D]``, own_value ``[B, Hkv, T, D]`` → z ``[B, H, T, D]``."""
        return exclude(y, own_value, strength=self.alpha())

    def alpha(self) -> float | Tensor:
        """α: a number, or tanh(γ) ``[H]``."""
        if self.strength_logit is None:
            assert self.strength != "learned"
            return self.strength
        return torch.tanh(self.of_own_heads(self.strength_logit))

    def extra_repr(self) -> str:
        """The strength."""
        return f"strength={self.strength}"


def check_strengths(model: nn.Module, source: Any) -> None:
    """Check that what was loaded from ``source`` has the strengths that the modules of ``model`` were built with."""
    for name, module in model.named_modules():
        if isinstance(module, Exclusive) and (reason := module.contradiction()):
            raise LoadError(f"{source}: {name} {reason}: its configuration and its weights do not belong together")
