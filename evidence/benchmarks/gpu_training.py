"""A short training of one variant in plain PyTorch, for a machine that has torch and transformers and nothing else.

Bytes of the Python source that comes with the interpreter. All variants of a seed read the same blocks in the same
order, and the last twentieth of the source is kept for validation.
"""

from __future__ import annotations

import math
import statistics
import sysconfig
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from exsel.model_sizes import SIZES
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.settings import DEFAULTS
from exsel.training.training_step import training_step
from exsel.variants import VARIANTS

MECHANISM_RATE = 1e-3
VALIDATION_BATCHES = 16


def trained_on_source(
    variant: str, *, seed: int, size: str, steps: int, batch: int, seq_len: int, device: str, is_compiled: bool
) -> dict[str, Any]:
    """Train from the start; the loss on the validation part, in nats a byte, and the time of a step.

    A step is clipped to 1, the rate rises over a tenth of the steps and falls to nothing as a cosine.
    """
    torch.manual_seed(seed)
    mechanisms = VARIANTS[variant].mechanisms
    model = ExselForCausalLM(ExselConfig.from_dict({**SIZES[size], "vocab_size": 256, **mechanisms})).to(device)
    own = mechanism_parameters(model)
    others = [parameter for name, parameter in model.named_parameters() if name not in own]
    groups = [
        {"params": list(own.values()), "lr": MECHANISM_RATE, "weight_decay": 0.0},
        {"params": others, "lr": DEFAULTS[size].learning_rate, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95))
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    if is_compiled:
        for layer in model.model.layers:
            layer.compile()
    training, validation = _source(device)
    generator = torch.Generator().manual_seed(seed)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = _loss(model, _blocks(training, batch, seq_len, generator))
        training_step(loss, model, optimizer).item()  # waits until the device is done
        schedule.step()
        seconds.append(time.perf_counter() - start)
    model.eval()
    generator.manual_seed(0)
    with torch.no_grad():
        losses = [
            _loss(model, _blocks(validation, batch, seq_len, generator)).item() for _ in range(VALIDATION_BATCHES)
        ]
    return {
        "variant": variant,
        "seed": seed,
        "size": size,
        "steps": steps,
        "batch": batch,
        "seq_len": seq_len,
        "loss": statistics.fmean(losses),
        "ms_per_step": 1e3 * statistics.median(seconds),
    }


@cache
def _source(device: str) -> tuple[Tensor, Tensor]:
    """The source as bytes: to train on, and to validate."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    paths = [path for path in sorted(root.rglob("*.py")) if left_out.isdisjoint(path.relative_to(root).parts)]
    text = b"".join(path.read_bytes() for path in paths)
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    kept = len(whole) // 20
    return whole[:-kept], whole[-kept:]


def _blocks(source: Tensor, batch: int, seq_len: int, generator: torch.Generator) -> Tensor:
    """Random blocks ``[batch, seq_len + 1]``, by a generator on the CPU: the same on every device."""
    starts = torch.randint(len(source) - seq_len - 1, (batch, 1), generator=generator)
    places = (starts + torch.arange(seq_len + 1)).to(source.device)
    return source[places].long()


def _loss(model: ExselForCausalLM, blocks: Tensor) -> Tensor:
    with torch.autocast(blocks.device.type, torch.bfloat16, enabled=blocks.is_cuda):
        logits = model(input_ids=blocks[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten())
