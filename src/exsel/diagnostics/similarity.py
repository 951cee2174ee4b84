"""The attention similarity bias: how much of each head's output points along the token's own value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from exsel.data import collate
from exsel.diagnostics.cosines import similarity, similarity_after
from exsel.diagnostics.observing import Attended, Layer, Observer
from exsel.diagnostics.watching import watch
from exsel.nn.exclusive import Exclusive


def batches_of(blocks: Any, size: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Rows of :func:`exsel.data.load_data` as arguments of a model's forward, ``size`` rows at a time."""
    for start in range(0, len(blocks), size):
        rows = [blocks[index] for index in range(start, min(start + size, len(blocks)))]
        yield {name: tensor.to(device) for name, tensor in collate(rows).items() if name != "labels"}


class _Cosines(Observer):
    """For each layer the sums of cos(y_i, v_i) and cos(z_i, v_i) over tokens and heads."""

    def __init__(self) -> None:
        self.before: dict[int, float] = defaultdict(float)
        self.after: dict[int, float] = defaultdict(float)
        self.counts: dict[int, int] = defaultdict(int)

    def attended(self, layer: Layer, attended: Attended) -> None:
        found = similarity(attended.y, attended.own_value)
        self.before[layer.index] += float(found.double().sum())
        self.counts[layer.index] += found.numel()

    def excluded(self, layer: Layer, exclusive: Exclusive, y: Tensor, own_value: Tensor, z: Tensor) -> None:
        self.after[layer.index] += float(similarity_after(z, y, own_value).double().sum())


@torch.no_grad()
def similarity_bias(
    model: nn.Module, blocks: Any, *, batch_size: int, device: torch.device
) -> list[dict[str, float | int | None]]:
    """Mean cos(y_i, v_i) of each layer, over heads and tokens; :func:`exsel.diagnose` measures more.

    Args:
        model: on ``device``. It runs uncompiled, in evaluation mode; sums are in float32.
        blocks: rows of ``input_ids``, as :func:`exsel.data.load_data` packs them.
        batch_size: blocks at a time.
        device: where the model is.

    Returns:
        For each layer ``layer``, ``output`` (of what reaches the output projection) and ``before_exclusion`` (of
        attention's own output, before the exclusive projection; ``None`` in layers without one).

    Raises:
        ExselError: a model without self-attention that could be watched.

    Source: Zhai, arXiv:2603.09078 (2026), Section 2: the attention similarity bias.
    """
    cosines = _Cosines()
    with watch(model, cosines):
        for batch in batches_of(blocks, batch_size, device):
            model(**batch, use_cache=False)
    means = {index: cosines.before[index] / count for index, count in sorted(cosines.counts.items())}
    return [
        {"layer": index, "output": cosines.after[index] / cosines.counts[index], "before_exclusion": mean}
        if index in cosines.after
        else {"layer": index, "output": mean, "before_exclusion": None}
        for index, mean in means.items()
    ]
