"""Save and load a checkpoint's optimizer, schedule and random generators, as safetensors and JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

OPTIMIZER_TENSORS, OPTIMIZER_VALUES = "optimizer.safetensors", "optimizer.json"
RANDOM_TENSORS, RANDOM_VALUES = "random.safetensors", "random.json"


def save_optimizer(folder: Path, optimizer: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """Save two state dictionaries: tensors under their parameter's index and their name, all else as JSON."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                values.setdefault(str(index), {})[name] = value
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


def save_random(folder: Path) -> None:
    """Save the states of Python's, NumPy's and PyTorch's random generators."""
    kind, keys, *position = np.random.get_state()
    values = {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *position]}
    tensors = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, folder / RANDOM_TENSORS)
    (folder / RANDOM_VALUES).write_text(json.dumps(values), encoding="utf-8")


def load_random(folder: Path) -> None:
    """Set the random generators to what :func:`save_random` saved."""
    values = json.loads((folder / RANDOM_VALUES).read_text(encoding="utf-8"))
    version, internal, gauss_next = values["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *position = values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))
    tensors = load_file(folder / RANDOM_TENSORS)
    torch.random.set_rng_state(tensors.pop("cpu"))
    for name, state in tensors.items():
        index = int(name.removeprefix("cuda."))
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, index)
