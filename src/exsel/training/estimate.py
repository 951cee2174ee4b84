"""How large runs are, before anything runs: parameters, steps, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from exsel.report import formatting
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.run_model import sketch_model
from exsel.training.settings import Settings, one_a_variant
from exsel.training.training_step import kept_for_backward

# Bytes of a float32 number.
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """The parameters of a run's model, those of its mechanisms, and the bytes that training it takes.

    Args:
        state_bytes: weights, gradients, and the optimizer's two averages.
        activation_bytes: what a forward pass of one micro-batch keeps for its backward pass, run eagerly; ``None`` for
            a model that cannot be traced without its weights.
    """

    parameters: int
    new_parameters: int
    state_bytes: int
    activation_bytes: int | None


def run_size(settings: Settings, vocab_size: int, processes: int = 1) -> RunSize:
    """The size of a run, from its model without memory for its weights; what one of the processes needs of it."""
    model = sketch_model(settings, vocab_size)
    new = mechanism_parameters(model)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(count for name, count in counts.items() if settings.train == "all" or name in new)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    ids = torch.zeros((settings.micro_batch_size // processes, settings.seq_len), dtype=torch.long, device="meta")
    try:
        is_low = settings.dtype == "bfloat16"
        with kept_for_backward() as kept, torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            model.train()(input_ids=ids, labels=ids)
    except (RuntimeError, NotImplementedError):  # an operator that needs values, not only shapes
        activations = None
    else:
        activations = sum(size for storage, size in kept.items() if storage not in own)
    return RunSize(
        parameters=sum(counts.values()),
        new_parameters=sum(parameter.numel() for parameter in new.values()),
        state_bytes=_FLOAT * (sum(counts.values()) + 3 * trained) // (processes if settings.shard else 1),
        activation_bytes=activations,
    )


def estimate(runs: Sequence[Settings], vocab_size: int, processes: int = 1) -> str:
    """Two lines: what is trained for how many steps, and the parameters and the memory that this needs.

    The memory on a CPU is that of the whole process. It is an estimate: kernels need some for their work, and compiled
    layers keep less. Of several processes it is what each needs.
    """
    first = runs[0]
    sizes = [run_size(run, vocab_size, processes) for run in one_a_variant(runs)]
    new = max(size.new_parameters for size in sizes)
    added = f", {'up to ' if len(sizes) > 1 else ''}{new:,} of them new" if new else ""
    parameters = f"{max(size.parameters for size in sizes):,} parameters{added}"
    known = [size.state_bytes + size.activation_bytes for size in sizes if size.activation_bytes is not None]
    process, free, where = _memory(first.device)
    if len(known) < len(sizes):
        needed = process + max(size.state_bytes for size in sizes)
        memory = f"at least {formatting.memory(needed)} of memory, without that of activations"
    else:
        needed = process + max(known)
        memory = f"about {formatting.memory(needed)} of memory"
    lacks = f", and {where} has {formatting.memory(free)} free" if free is not None and needed - process > free else ""
    together = f" in {processes} processes" if processes > 1 else ""
    count = "" if len(runs) == 1 else f"{len(runs)} runs, each "
    return (
        f"model: {first.model_name}, {count}{first.steps:,} steps of {first.batch_size} × {first.seq_len} tokens on "
        f"{first.device}{together}, {first.dtype}, {'compiled' if first.compile else 'eager'}\n"
        f"size: {parameters}; {formatting.compact(len(runs) * first.steps * first.tokens_per_step)} tokens in all; "
        f"{memory}{lacks}"
    )


def _memory(device: str) -> tuple[int, int | None, str]:
    """Bytes that this process has where the model will be, bytes that are free there, and its name."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0], "the GPU"
    if device == "cpu":
        return psutil.Process().memory_info().rss, psutil.virtual_memory().available, "this machine"
    return 0, None, device
