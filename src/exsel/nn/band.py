"""Causal self-attention in a window or in packed sequences, said in a few numbers instead of a mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from exsel.reference import allowed


@dataclass(frozen=True, eq=False, kw_only=True)
class Band:
    """Which keys the queries of a causal forward pass may attend to.

    A token sees those before it and itself, in its own sequence, and no further back than the window.
    ``sequence`` ``[B, T]`` numbers the sequences, whose tokens stand side by side; ``None``: there is one, as
    with a past. In it the tokens of ``is_padding`` ``[B, T]`` are sequences of their own.
    """

    num_queries: int
    device: torch.device
    past: int = 0  # how many keys stand before the first query's own
    window: int | None = None  # how many tokens a token sees, itself among them; None: all
    sequence: Tensor | None = None
    is_padding: Tensor | None = None
    _kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def first_key(self) -> int:
        """The first key that any query sees."""
        return 0 if self.window is None else max(0, self.past - self.window + 1)

    def mask(self, first_key: int = 0) -> Tensor:
        """Over the keys from ``first_key`` on: boolean ``[B or 1, 1, T, S]``, True: may attend."""
        if torch.compiler.is_compiling():
            return self._mask(first_key)
        if first_key not in self._kept:  # the layers of a model share it
            self._kept[first_key] = self._mask(first_key)
        return self._kept[first_key]

    def contiguous(self) -> Tensor:
        """:meth:`mask`: what transformers' generation calls before a mask goes into a compiled graph."""
        return self.mask()

    def _mask(self, first_key: int) -> Tensor:
        past = self.past - first_key
        num_keys = past + self.num_queries
        band = allowed(self.num_queries, num_keys, True, self.window, self.sequence, self.device, past)
        return band if band.ndim == 4 else band[None, None]

    def tokens_before(self) -> Tensor | None:
        """How many tokens of other sequences stand before each token's own, ``[B, T]``; ``None``: none."""
        if self.sequence is None:
            return None
        place = torch.arange(self.num_queries, device=self.device)
        is_first = self.sequence.diff(dim=-1, prepend=self.sequence[:, :1] - 1) != 0
        return torch.where(is_first, place, 0).cummax(-1).values
