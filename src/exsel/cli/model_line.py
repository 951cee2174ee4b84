"""What a saved model is, in one line, from its files alone: before anything heavy is imported."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from exsel.cli.checkpoint import find_model
from exsel.errors import ExselError
from exsel.files import read_object
from exsel.model_folder import ADAPTER, ENTRY
from exsel.report.formatting import compact
from exsel.variants import BASELINE, kind_of

# Names under which configurations say how many layers there are, and how wide they are.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")


def say_model(text: str) -> str:
    """Print what a model is: ``model: runs/a, exsel, exclusive, 4 layers of width 192, 1.82M weights``.

    Of an adapter, of a model on the hub and of one with damaged files nothing is printed. Returns its folder, or its
    name on the hub.
    """
    folder = text if (Path(text) / ADAPTER).is_file() else find_model(text)
    # Loading a damaged model says what is wrong.
    with suppress(ExselError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        print(f"model: {text}, {', '.join(_summary(Path(folder)))}", flush=True)
    return folder


def _summary(folder: Path) -> list[str]:
    """The type of a model, its mechanisms and its size; any error if its files are not as they should be."""
    config = read_object(folder / "config.json")
    # An upgraded model's entry has the plain model's configuration. The mechanisms of exsel's own stand in it directly.
    upgraded = config.get(ENTRY)
    places = [config] if upgraded is None else upgraded["upgrades"]
    config = config if upgraded is None else upgraded["base"]
    mechanisms = {name for name in ("exclusive", "selective") if any(place.get(name) for place in places)}
    words = [config["model_type"], *([] if kind_of(mechanisms) == BASELINE else [kind_of(mechanisms)])]
    sizes = {**config, **config.get("text_config", {})}
    layers, width = (next((sizes[name] for name in names if name in sizes), None) for names in (_LAYERS, _WIDTH))
    if isinstance(layers, int) and isinstance(width, int):
        words.append(f"{layers} layers of width {width}")
    shapes = [entry["shape"] for path in sorted(folder.glob("*.safetensors")) for entry in _tensors(path)]
    return [*words, *([f"{compact(sum(map(math.prod, shapes)))} weights"] if shapes else [])]


def _tensors(path: Path) -> list[dict[str, Any]]:
    """The entries of a safetensors file's header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    return [entry for name, entry in header.items() if name != "__metadata__"]
