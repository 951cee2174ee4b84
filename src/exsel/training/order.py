"""The order in which a run reads its blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class BlockOrder(Sampler[int]):
    """The blocks of a whole run in order: one permutation of all after the other, cut where the run ends.

    Every step is whole, also where the blocks run out in the middle of one; and the order is told by its arguments
    alone, so that variants read the same and a resumed run goes on where it stopped.

    Args:
        blocks: how many there are.
        length: how many the run reads.
        seed: of the permutations.
    """

    def __init__(self, blocks: int, *, length: int, seed: int) -> None:
        self.blocks = blocks
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        left = self.length
        while left > 0:
            order = torch.randperm(self.blocks, generator=generator)[:left]
            left -= len(order)
            yield from order.tolist()
