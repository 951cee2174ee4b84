"""Save and load a checkpoint's optimizer, schedule and random generators, as safetensors and JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exsel.training.sharding import gathered

OPTIMIZER_TENSORS, OPTIMIZER_VALUES = "optimizer.safetensors", "optimizer.json"
RANDOM_TENSORS, RANDOM_VALUES = "random.safetensors", "random.json"


def save_optimizer(folder: Path, optimizer: dict[str, Any], scheduler: dict[str, Any], *, writes: bool = True) -> None:
    """Save two state dictionaries: tensors under their parameter's index and their name, all else as JSON.

    Divided tensors are put together, for which every process must call this; one alone ``writes``.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                values.setdefault(str(index), {})[name] = value
    tensors = gathered(tensors, keep=writes)
    if not writes:
        return
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    content = {"values": values, "param_groups": optimizer["param_groups"], "scheduler": scheduler}
    (folder / OPTIMIZER_VALUES).write_text(json.dumps(content), encoding="utf-8")


def load_optimizer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimizer's and the scheduler's state dictionaries."""
    content = json.loads((folder / OPTIMIZER_VALUES).read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in content["values"].items()}
    for key, tensor in load_file(folder / OPTIMIZER_TENSORS).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": content["param_groups"]}, content["scheduler"]


def random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The states of Python's and NumPy's random generators, as JSON types, and of PyTorch's."""
    kind, keys, *position = np.random.get_state()
    values = {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *position]}
    tensors = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return values, tensors


def save_random(folder: Path, states: Sequence[tuple[dict[str, Any], dict[str, Tensor]]]) -> None:
    """Save every process's :func:`random_state`."""
    tensors = {f"{rank}.{name}": state for rank, (_, own) in enumerate(states) for name, state in own.items()}
    save_file(tensors, folder / RANDOM_TENSORS)
    (folder / RANDOM_VALUES).write_text(json.dumps([values for values, _ in states]), encoding="utf-8")


def load_random(folder: Path, rank: int) -> None:
    """Set the random generators to what a process of this number saved; leave them as they are if there was none."""
    processes = json.loads((folder / RANDOM_VALUES).read_text(encoding="utf-8"))
    if rank >= len(processes):
        return
    values = processes[rank]
    version, internal, gauss_next = values["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *position = values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))
    tensors = load_file(folder / RANDOM_TENSORS)
    torch.random.set_rng_state(tensors[f"{rank}.cpu"])
    if f"{rank}.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{rank}.cuda"])
