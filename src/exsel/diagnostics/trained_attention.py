"""What a training keeps of its model's attention.

The similarity bias: how much of each head's output points along the token's own value. And how far inverse temperatures
have moved from where they started, and how much they differ among tokens and heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from exsel.data import collate
from exsel.diagnostics.cosines import similarity, similarity_after
from exsel.diagnostics.observing import Attended, Layer, Observer
from exsel.diagnostics.watching import watch
from exsel.nn.exclusive import Exclusive
from exsel.nn.temperature import Temperature
from exsel.upgrading.rewriting import CHILD


def _batches(blocks: Any, size: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
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
        for batch in _batches(blocks, batch_size, device):
            model(**batch, use_cache=False)
    means = {index: cosines.before[index] / count for index, count in sorted(cosines.counts.items())}
    return [
        {"layer": index, "output": cosines.after[index] / cosines.counts[index], "before_exclusion": mean}
        if index in cosines.after
        else {"layer": index, "output": mean, "before_exclusion": None}
        for index, mean in means.items()
    ]


class _Sums:
    """Of one temperature, over tokens: τ and its square for each head, and the square of τ / τ_start − 1."""

    def __init__(self, num_heads: int) -> None:
        self.tau, self.squares = torch.zeros(2, num_heads, dtype=torch.float64)
        self.moved = 0.0
        self.tokens = 0

    def add(self, module: nn.Module, given: tuple[Any, ...], options: dict[str, Any], tau: Tensor) -> None:
        """Add the result ``[B, H, T]`` of a call of the temperature."""
        assert isinstance(module, Temperature)
        position = given[1] if len(given) > 1 else options.get("position")
        wide = tau.cpu().double()  # not every device has float64
        start = module.at_start(None if position is None else position.cpu())
        self.moved += float((wide / start - 1).square().mean(1).sum())
        self.tau = self.tau + wide.sum((0, 2))
        self.squares = self.squares + wide.square().sum((0, 2))
        self.tokens += tau[:, 0].numel()

    def result(self) -> dict[str, float]:
        """The numbers of the record."""
        heads = self.tau / self.tokens
        variance = (self.squares / self.tokens - heads.square()).clamp_min(0)
        return {
            "mean": float(heads.mean()),
            "over_tokens": float(variance.mean().sqrt()),
            "over_heads": float(heads.std(correction=0)),
            "moved": (self.moved / self.tokens) ** 0.5,
        }


@torch.no_grad()
def temperature_moves(
    model: nn.Module, blocks: Any, *, batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """How far each temperature of a model has moved, on some text.

    Args:
        model: on ``device``. It runs uncompiled, in evaluation mode.
        blocks: rows of ``input_ids``, as :func:`exsel.data.load_data` packs them; at least one.
        batch_size: blocks at a time.
        device: where the model is.
        dtype: of the computation (autocast, if it is not float32).

    Returns:
        For each layer and kind ``module`` (the layer's name), ``kind`` (``"query"``, ``"key"``, ``"value"``), ``mean``
        (mean τ), ``over_tokens`` (the standard deviation over a head's tokens, root mean square of the heads),
        ``over_heads`` (that of the heads' means) and ``moved`` (the root mean square over tokens and heads of
        τ / τ_start − 1, τ_start of a temperature that was never trained). Empty for a model without temperatures.
    """
    sums: dict[str, _Sums] = {}
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in model.named_modules():
            if isinstance(module, Temperature):
                sums[name] = _Sums(module.num_heads)
                stack.callback(module.register_forward_hook(sums[name].add, with_kwargs=True).remove)
        stack.enter_context(torch.autocast(device.type, dtype, enabled=dtype != torch.float32))
        for batch in _batches(blocks, batch_size, device) if sums else ():
            model(**batch, use_cache=False)
    model.train(was_training)
    return [
        {
            # The attention layer that has the temperature of this name.
            "module": name.partition(".temperatures.")[0].partition(f".{CHILD}")[0],
            "kind": name.rpartition(".")[2],
            **each.result(),
        }
        for name, each in sums.items()
        if each.tokens
    ]
