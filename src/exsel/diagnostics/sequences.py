"""Which place in which sequence each token of a batch has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_OTHER_INPUT = re.compile(r"vision|visual|image|audio|speech|video", re.IGNORECASE)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch, ``[B, T]`` each.

    Args:
        number: n, 1-based in the token's own sequence; 0: padding.
        sequence: a number of its own for every sequence of the batch.
        first: in which column the token's sequence begins.
    """

    number: Tensor
    sequence: Tensor
    first: Tensor

    @property
    def is_real(self) -> Tensor:
        """Whether a token is not padding."""
        return self.number > 0

    @property
    def length(self) -> Tensor:
        """How many tokens the sequence of each token has; 0 for padding."""
        counts = torch.bincount(self.sequence[self.is_real], minlength=int(self.sequence.max()) + 1)
        return counts[self.sequence] * self.is_real

    @property
    def bucket(self) -> Tensor:
        """0 for n = 1, 1 for 2 and 3, 2 for 4 to 7, …"""
        # In integers: a float32 logarithm of 2ᵏ − 1 may be k.
        bounds = 2 ** torch.arange(1, 40, device=self.number.device)
        return torch.bucketize(self.number.clamp_min(1), bounds, right=True)

    def to(self, device: torch.device) -> Tokens:
        """On another device."""
        return Tokens(self.number.to(device), self.sequence.to(device), self.first.to(device))

    @classmethod
    def of(cls, mask: Tensor | None, position_ids: Tensor | None, shape: tuple[int, int]) -> Tokens:
        """Find the sequences of a batch.

        A row is one sequence, or where its ``position_ids`` do not go on by 1, several.

        Args:
            mask: ``[B, T]``, 0 for padding.
            position_ids: ``[B or 1, T]``; of another shape: not heeded.
            shape: (B, T).
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
    """The sequences of tokens that a batch holds for a model: one, or its encoder's and its decoder's.

    Args:
        batch: what the model is called with.
        has_encoder: whether ``input_ids`` are the encoder's, and no decoder's.
    """

    def __init__(self, batch: Mapping[str, Any], *, has_encoder: bool = False) -> None:
        self.has_encoder = has_encoder
        self.tokens: dict[str, Tokens] = {}
        self.ids: dict[str, Tensor] = {}
        for stream, names in (
            ("", ("input_ids", "attention_mask", "position_ids")),
            ("decoder", ("decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")),
        ):
            ids, mask, position_ids = (batch.get(name) for name in names)
            if not isinstance(ids, Tensor) or ids.ndim != 2:
                continue
            if not isinstance(mask, Tensor) or mask.shape != ids.shape:
                mask = None
            self.ids[stream] = ids
            self.tokens[stream] = Tokens.of(
                mask, position_ids if isinstance(position_ids, Tensor) else None, (ids.shape[0], ids.shape[1])
            )

    def of_layer(self, name: str, shape: tuple[int, int]) -> tuple[str | None, Tokens]:
        """The stream that a layer of this name, called with ``shape`` tokens, sees; without one each row is a sequence.

        Returns:
            The stream's name, ``None`` without one, and its tokens.
        """
        stream = "decoder" if self.has_encoder and "decoder" in name else ""
        tokens = self.tokens.get(stream)
        if tokens is None or tokens.number.shape != shape or _OTHER_INPUT.search(name):
            return None, Tokens.of(None, None, shape)
        return stream, tokens
