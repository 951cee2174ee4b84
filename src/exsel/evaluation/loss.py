"""A model's loss on packed blocks: over all of them, and by position in the block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel.data import collate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Sums over the predictions made at each position of a block; position 0 has nothing to predict from."""

    loss_sum: Tensor
    """Of the negative log-likelihoods in nats, ``[seq_len]``, float64."""
    count: Tensor
    """Of the predictions, ``[seq_len]``, int64."""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return float(self.loss_sum.sum() / self.count.sum())

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss in bits for each byte of UTF-8 text."""
        return self.loss / math.log(2) / bytes_per_token

    def by_position(self) -> list[tuple[int, int, float]]:
        """Mean loss in buckets that double: (first position, one past the last, loss), positions 0-based."""
        buckets, first = [], 1
        while first < len(self.count):
            end = min(2 * first, len(self.count))
            if count := int(self.count[first:end].sum()):
                buckets.append((first, end, float(self.loss_sum[first:end].sum()) / count))
            first = end
        return buckets


@torch.no_grad()
def evaluate_loss(
    model: torch.nn.Module,
    blocks: Any,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a transformers language model, uncompiled, in evaluation mode.

    Args:
        model: a model on ``device``.
        blocks: rows of ``input_ids`` (and ``position_ids``), as :func:`exsel.data.load_data` packs them.
        batch_size: blocks at a time.
        device: where the model is.
        dtype: of the computation (autocast, if it is not float32).
        on_batch: called after each batch with (blocks done, blocks in all).
    """
    was_training = model.training
    model.eval()
    total = len(blocks)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    with torch.compiler.set_stance("force_eager"):
        for start in range(0, total, batch_size):
            rows = [blocks[index] for index in range(start, min(start + batch_size, total))]
            batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
            labels = batch.pop("labels")[:, 1:]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(**batch, use_cache=False).logits[:, :-1]
            losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
            loss_sum = loss_sum + losses.double().sum(0)
            count = count + (labels != -100).sum(0)
            if on_batch is not None:
                on_batch(start + len(rows), total)
    model.train(was_training)
    return Evaluation(loss_sum=F.pad(loss_sum, (1, 0)).cpu(), count=F.pad(count, (1, 0)).cpu())
