"""What a run will take before anything runs: parameters, steps, memory; and the schedule that fits its steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.run_model import sketch_model
from exsel.training.settings import Settings

# Bytes of a float32 number.
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a run.

    Args:
        parameters: of the model.
        new_parameters: of them, those of the mechanisms.
        state_bytes: weights, gradients, and the optimizer's two averages.
        activation_bytes: what a forward pass of one micro-batch keeps for its backward pass, run eagerly; ``None`` for
            a model that cannot be traced without its weights.
    """

    parameters: int
    new_parameters: int
    state_bytes: int
    activation_bytes: int | None


def size_of(settings: Settings, vocab_size: int) -> Size:
    """The size of a run, from its model without memory for its weights."""
    model = sketch_model(settings, vocab_size)
    new = mechanism_parameters(model)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(count for name, count in counts.items() if settings.train == "all" or name in new)
    kept: dict[int, tuple[Tensor, int]] = {}  # the tensor is held so that its storage is not used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    ids = torch.zeros((settings.micro_batch_size, settings.seq_len), dtype=torch.long, device="meta")
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype == "bfloat16"),
        ):
            model.train()(input_ids=ids, labels=ids)
    except (RuntimeError, NotImplementedError):  # an operator that needs values, not only shapes
        activations = None
    else:
        activations = sum(size for storage, (_, size) in kept.items() if storage not in own)
    return Size(
        parameters=sum(counts.values()),
        new_parameters=sum(parameter.numel() for parameter in new.values()),
        state_bytes=_FLOAT * (sum(counts.values()) + 3 * trained),
        activation_bytes=activations,
    )
