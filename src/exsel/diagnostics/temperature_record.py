"""How far inverse temperatures have moved from where they started, and how much they differ among tokens and heads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from exsel.diagnostics.similarity import batches_of
from exsel.nn.temperature import Temperature
from exsel.upgrading.rewriting import CHILD


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
        for batch in batches_of(blocks, batch_size, device) if sums else ():
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
