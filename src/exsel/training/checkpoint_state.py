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
RANDOM = "random.json"


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


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's random generators, as JSON types."""
    kind, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *position],
        "cpu": torch.random.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def save_random(folder: Path, states: Sequence[dict[str, Any]]) -> None:
    """Save every process's :func:`random_state`."""
    (folder / RANDOM).write_text(json.dumps(states), encoding="utf-8")


def load_random(folder: Path, rank: int) -> None:
    """Set the random generators to what a process of this number saved; leave them as they are if there was none."""
    processes = json.loads((folder / RANDOM).read_text(encoding="utf-8"))
    if rank >= len(processes):
        return
    state = processes[rank]
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))
    torch.random.set_rng_state(torch.tensor(state["cpu"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
