"""The attention similarity bias: how much of each head's output points along the token's own value."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exsel.data import collate
from exsel.models import ExselForCausalLM
from exsel.models.attention import IMPLEMENTATION
from exsel.models.modeling import ExselAttention


class _LayerProbe:
    """Sums of cos(y_i, v_i) and cos(z_i, v_i) over the tokens and heads that pass through one layer."""

    def __init__(self, attention: ExselAttention) -> None:
        self.attention = attention
        self.own_value: Tensor | None = None
        self.before: float | None = None if attention.exclusive is None else 0.0
        self.output = 0.0
        self.count = 0

    def hook(self, stack: ExitStack) -> None:
        def keep_value(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.own_value = output.unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)

        def add_before(_module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            assert self.before is not None
            self.before += self._cosines(inputs[0])

        def add_output(_module: nn.Module, inputs: tuple[Tensor]) -> None:
            heads = inputs[0].unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)
            self.output += self._cosines(heads)
            self.count += heads.shape[:-1].numel()

        attention = self.attention
        handles = [
            attention.v_proj.register_forward_hook(keep_value),
            attention.o_proj.register_forward_pre_hook(add_output),
        ]
        if attention.exclusive is not None:
            handles.append(attention.exclusive.register_forward_pre_hook(add_before))
        for handle in handles:
            stack.callback(handle.remove)

    def _cosines(self, y: Tensor) -> float:
        assert self.own_value is not None
        grouped = y.unflatten(1, (self.own_value.shape[1], -1)).float()
        return float(F.cosine_similarity(grouped, self.own_value.float().unsqueeze(2), dim=-1).double().sum())

    def result(self, layer: int) -> dict[str, float | int | None]:
        before = None if self.before is None else self.before / self.count
        return {"layer": layer, "output": self.output / self.count, "before_exclusion": before}


@torch.no_grad()
def similarity_bias(
    model: ExselForCausalLM, blocks: Any, *, batch_size: int, device: torch.device
) -> list[dict[str, float | int | None]]:
    """Mean cos(y_i, v_i) of each layer, over heads and tokens.

    Args:
        model: on ``device``; run uncompiled, in evaluation mode and float32 sums.
        blocks: rows of ``input_ids``, as :func:`exsel.data.load_data` packs them.
        batch_size: blocks at a time.
        device: where the model is.

    Returns:
        For each layer ``layer``, ``output`` (of what reaches the output projection) and ``before_exclusion`` (of
        attention's own output, before the exclusive projection; ``None`` in layers without one).

    Source: Zhai, arXiv:2603.09078 (2026), Section 2: the attention similarity bias.
    """
    was_training = model.training
    model.eval()
    implementation = model.config._attn_implementation
    probes = [_LayerProbe(layer.self_attn) for layer in model.model.layers]  # type: ignore[arg-type]
    with ExitStack() as stack, torch.compiler.set_stance("force_eager"):
        if implementation == IMPLEMENTATION:
            # Our operator never shows attention's own output.
            model.set_attn_implementation("sdpa")
            stack.callback(model.set_attn_implementation, implementation)
        for probe in probes:
            probe.hook(stack)
        for start in range(0, len(blocks), batch_size):
            rows = [blocks[index] for index in range(start, min(start + batch_size, len(blocks)))]
            batch = {name: tensor.to(device) for name, tensor in collate(rows).items() if name != "labels"}
            model(**batch, use_cache=False)
    model.train(was_training)
    return [probe.result(index) for index, probe in enumerate(probes)]
