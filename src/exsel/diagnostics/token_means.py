"""Means of a metric by head and by position, added up over the batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exsel.diagnostics.sequences import NUM_BUCKETS, Tokens


class TokenMeans:
    """The sums of one metric in one layer.

    Args:
        num_heads: heads of the values that are added: all query heads, or all key/value heads.
    """

    def __init__(self, num_heads: int) -> None:
        self.sums = torch.zeros(NUM_BUCKETS, num_heads, dtype=torch.float64)
        self.counts = torch.zeros(NUM_BUCKETS, dtype=torch.long)
        self.least, self.most = float("inf"), float("-inf")

    def add(self, values: Tensor, tokens: Tokens, counted: Tensor) -> None:
        """Add the ``values`` ``[B, heads, T]`` of those tokens of a batch that ``counted`` ``[B, T]`` selects."""
        if not counted.any():
            return
        chosen = values.transpose(1, 2)[counted].cpu().double()
        bucket = tokens.bucket[counted].cpu()
        self.sums.index_add_(0, bucket, chosen)
        self.counts += torch.bincount(bucket, minlength=NUM_BUCKETS)
        self.least = min(self.least, float(chosen.min()))
        self.most = max(self.most, float(chosen.max()))

    def result(self, num_heads: int, num_buckets: int) -> dict[str, Any]:
        """The metric's entry in ``diagnostics.json``; every one of ``num_heads`` query heads gets a number."""
        sums, counts = self.sums[:num_buckets], self.counts[:num_buckets]
        repeats = num_heads // sums.shape[1]
        means = [
            (row / count).repeat_interleave(repeats).tolist() if count else [None] * num_heads
            for row, count in zip(sums, counts, strict=True)
        ]
        return {
            **over_heads((sums.sum(0) / counts.sum()).repeat_interleave(repeats)),
            "least": self.least,
            "most": self.most,
            "buckets": [None if row[0] is None else sum(row) / len(row) for row in means],
            "head_buckets": [list(by_bucket) for by_bucket in zip(*means, strict=True)],
        }


def over_heads(values: Tensor) -> dict[str, Any]:
    """The entry in ``diagnostics.json`` of a metric with one number for each head, ``[H]``."""
    heads = values.double().cpu()
    return {
        "mean": float(heads.mean()),
        "least": float(heads.min()),
        "most": float(heads.max()),
        "heads": heads.tolist(),
        "buckets": [],
        "head_buckets": [],
    }
