"""Means of a metric over tokens, by head and by position, added up batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exsel.diagnostics.sequences import Tokens


class TokenMeans:
    """One metric of one layer.

    Args:
        num_heads: of what is added; :meth:`result` may be asked for a multiple.
    """

    def __init__(self, num_heads: int) -> None:
        self.sums = torch.zeros(0, num_heads, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.long)
        self.least, self.most = float("inf"), float("-inf")

    def add(self, values: Tensor, tokens: Tokens, counted: Tensor) -> None:
        """Add a batch.

        Args:
            values: ``[B, heads, T]``.
            tokens: their places.
            counted: ``[B, T]``, which of them count.
        """
        if not counted.any():
            return
        chosen = values.transpose(1, 2)[counted].cpu().double()
        bucket = tokens.bucket[counted].cpu()
        self._grow(int(bucket.max()) + 1)
        self.sums.index_add_(0, bucket, chosen)
        self.counts += torch.bincount(bucket, minlength=len(self.counts))
        self.least = min(self.least, float(chosen.min()))
        self.most = max(self.most, float(chosen.max()))

    def _grow(self, buckets: int) -> None:
        missing = max(0, buckets - len(self.counts))
        self.sums = torch.cat((self.sums, self.sums.new_zeros(missing, self.sums.shape[1])))
        self.counts = torch.cat((self.counts, self.counts.new_zeros(missing)))

    def result(self, num_heads: int, num_buckets: int) -> dict[str, Any] | None:
        """The metric as ``diagnostics.json`` has it, of ``num_heads`` heads; ``None``: nothing was counted."""
        total = int(self.counts.sum())
        if total == 0:
            return None
        self._grow(num_buckets)
        repeats = num_heads // self.sums.shape[1]
        by_head = (self.sums.sum(0) / total).repeat_interleave(repeats)
        means = [
            (row / count).repeat_interleave(repeats).tolist() if count else [None] * num_heads
            for row, count in zip(self.sums, self.counts, strict=True)
        ]
        return {
            "mean": float(by_head.mean()),
            "least": self.least,
            "most": self.most,
            "heads": by_head.tolist(),
            "buckets": [None if row[0] is None else sum(row) / len(row) for row in means],
            "head_buckets": [list(by_bucket) for by_bucket in zip(*means, strict=True)],
        }


def of_heads(values: Tensor) -> dict[str, Any]:
    """A metric that is a number for each head, ``[H]``, as ``diagnostics.json`` has it."""
    heads = values.double().cpu()
    return {
        "mean": float(heads.mean()),
        "least": float(heads.min()),
        "most": float(heads.max()),
        "heads": heads.tolist(),
        "buckets": [],
        "head_buckets": [],
    }
