"""The sequence that each token of a batch belongs to, and its place in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Places 1, 2–3, 4–7, … share a bucket each; no sequence needs more of them.
NUM_BUCKETS = 40
_OTHER_INPUT = re.compile(r"vision|visual|image|audio|speech|video", re.IGNORECASE)


@dataclass(frozen=True)
class Tokens:
    """The places of a batch's tokens, ``[B, T]`` each."""

    number: Tensor  #: place n of the token in its sequence, from 1; 0 for padding
    sequence: Tensor  #: index of its sequence, over all sequences of the batch
    first: Tensor  #: column in which its sequence begins

    @property
    def is_real(self) -> Tensor:
        """Whether a token is not padding."""
        return self.number > 0

    @property
    def length(self) -> Tensor:
        """The number of tokens in each token's sequence; 0 for padding."""
        counts = torch.bincount(self.sequence[self.is_real], minlength=int(self.sequence.max()) + 1)
        return counts[self.sequence] * self.is_real

    @property
    def bucket(self) -> Tensor:
        """⌊log₂ n⌋: 0 for n = 1, 1 for 2 and 3, 2 for 4 to 7, …"""
        # Integers, because a float32 logarithm of 2ᵏ − 1 may be k.
        bounds = 2 ** torch.arange(1, NUM_BUCKETS, device=self.number.device)
        return torch.bucketize(self.number.clamp_min(1), bounds, right=True)

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        return Tokens(self.number.to(device), self.sequence.to(device), self.first.to(device))

    @classmethod
    def of(cls, mask: Tensor | None, position_ids: Tensor | None, shape: tuple[int, int]) -> Tokens:
        """Find the sequences of a batch of ``shape`` (B, T).

        A row holds one sequence. Where its ``position_ids`` ``[B or 1, T]`` do not go on by 1, another one begins;
        ``position_ids`` of another shape are ignored. ``mask`` ``[B, T]`` is 0 for padding.
        """
        is_real = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
        count = is_real.long().cumsum(-1)
        starts = is_real & (count == 1)
        if position_ids is not None and position_ids.ndim == 2 and position_ids.shape[1] == shape[1]:
            goes_on = torch.ones(shape, dtype=torch.bool)
            goes_on[:, 1:] = (position_ids.diff(dim=-1) == 1).cpu()
            goes_on[:, 1:] |= ~is_real[:, :-1]
            starts |= is_real & ~goes_on
        column = torch.arange(shape[1]).expand(shape)
        first = torch.where(starts, column, -1).cummax(-1).values.clamp_min(0)
        number = torch.where(is_real, count - count.gather(-1, first) + 1, 0)
        return cls(number, starts.flatten().long().cumsum(0).view(shape), first)


class Streams:
    """The texts that a model reads in a batch of arguments by name: one, or its encoder's and its decoder's."""

    def __init__(self, batch: Mapping[str, Any], *, has_encoder: bool = False) -> None:
        self.has_encoder = has_encoder
        self.tokens: dict[str, Tokens] = {}
        self.ids: dict[str, Tensor] = {}
        for stream, prefix in (("", ""), ("decoder", "decoder_")):
            names = ("input_ids", "attention_mask", "position_ids")
            ids, mask, position_ids = (
                value if isinstance(value := batch.get(prefix + name), Tensor) else None for name in names
            )
            if ids is not None and ids.ndim == 2:
                if mask is not None and mask.shape != ids.shape:
                    mask = None
                self.ids[stream] = ids
                self.tokens[stream] = Tokens.of(mask, position_ids, (ids.shape[0], ids.shape[1]))

    def of_layer(self, name: str, shape: tuple[int, int]) -> tuple[str | None, Tokens]:
        """The text that the layer ``name`` reads when it is called with ``shape`` (B, T) tokens, and its tokens.

        The text is ``None`` where the layer reads something else, such as an image: then each row is a sequence.
        """
        stream = "decoder" if self.has_encoder and "decoder" in name else ""
        tokens = self.tokens.get(stream)
        if tokens is None or tokens.number.shape != shape or _OTHER_INPUT.search(name):
            return None, Tokens.of(None, None, shape)
        return stream, tokens
