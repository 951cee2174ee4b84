"""What a saved model's folder tells programs without exsel and people, and the check of its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from exsel.errors import LoadError
from exsel.files import read_object, write_text
from exsel.version import __version__

#: The model type in the ``config.json`` of an upgraded model. Auto classes that do not know it quote it in their error.
MODEL_TYPE = "exsel_upgraded: import exsel first"
#: All other classes quote this in their error, in a program that has not imported exsel.
HOW_TO_LOAD = "this model needs exsel, and loads with: import exsel; exsel.from_pretrained(folder)"
#: Entries of a ``config.json`` that make models fail to load in a program without exsel, and tokenizers load.
STOP: Mapping[str, str] = {
    "transformers_weights": HOW_TO_LOAD,  # from_pretrained refuses it: it is no name of a weights file
    "attn_implementation": HOW_TO_LOAD,  # a model refuses it when it is built
    "hidden_size": HOW_TO_LOAD,  # most configurations refuse these two: they are no numbers
    "vocab_size": HOW_TO_LOAD,
}

#: What the classes in an upgraded model's ``architectures`` are called before the plain class's name.
PREFIX = "Upgraded"
#: The entry of ``config.json`` that holds an upgraded model's mechanisms and its plain configuration.
ENTRY = "exsel"

#: The file that a folder with a PEFT adapter, not a model, holds.
ADAPTER = "adapter_config.json"

#: A suffix for the name of a model that was upgraded in memory. Nothing is found under the longer name, so no program
#: loads the plain model in its place.
UNSAVED = ", upgraded in memory: save_pretrained it to a folder, and load it from there by exsel.from_pretrained"

_CARD = "README.md"
#: exsel overwrites only cards with this line. A user who removes it keeps their own card.
_OURS = "<!-- exsel writes this card anew whenever it saves the model here; to keep your own, remove this line -->"
#: What transformers writes when it pushes a model to the hub, over a card that was saved.
_MADE_BY_TRANSFORMERS = "This model card has been automatically generated."
_CARD_TEXT = """---
{header}
tags:
- exsel
---

{ours}

# {name} with exsel

exsel {version} has put in:

{mechanisms}
{origin}
## Load it

```python
import exsel  # pip install 'exsel[models]'

model = exsel.from_pretrained("path/to/this/folder")
```

After `import exsel`, transformers' Auto classes and `pipeline` load it too. The tokenizer needs no exsel.
{otherwise}
"""
_REFUSED = "Without exsel transformers refuses to load it."
_WITH_CODE = """
Where exsel is not installed, the folder's own code (`{code}`) does, in plain PyTorch:

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder", trust_remote_code=True)
```

Without `trust_remote_code=True` transformers refuses to load it."""


def wrapped_config(
    base: Mapping[str, Any], description: Mapping[str, Any], auto_map: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The ``config.json`` of an upgraded model.

    Args:
        base: the plain model's.
        description: of the mechanisms.
        auto_map: where the folder's own code is, if it has any.
    """
    names = [name.removeprefix(PREFIX) for name in base.get("architectures") or ()]
    return {
        "model_type": MODEL_TYPE,
        "architectures": [PREFIX + name for name in names],
        **STOP,
        ENTRY: {**description, "base": {**base, "architectures": names}},
        **({"auto_map": auto_map} if auto_map else {}),
        "transformers_version": base.get("transformers_version"),
    }


def write_card(folder: Path, name: str, mechanisms: Mapping[str, Mapping[str, Any]], base: str = "") -> None:
    """Write a model card, ``README.md``, into a saved model's folder, unless a card of somebody else's is there.

    Args:
        folder: of the model; one without ``config.json`` holds no model (but an adapter), and gets no card.
        name: of the model's class.
        mechanisms: the name and place of each (``"exclusive attention in …"``), and its values.
        base: where the model was loaded from: a folder, a name on the Hugging Face hub, or empty. The licence is
            taken from its card, if that can be read without the network.
    """
    path = folder / _CARD
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else _OURS
    is_somebodys = _OURS not in before and _MADE_BY_TRANSFORMERS not in before
    if is_somebodys or not (folder / "config.json").is_file():
        return
    card = _card_of(base)
    if _OURS in card:
        base = _entry(card, "base_model")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", base) or Path(base).exists():
        base = ""  # a path on this machine tells others nothing
    entries = {"library_name": "transformers", "base_model": base, "license": _entry(card, "license")}
    auto_map = read_object(folder / "config.json").get("auto_map") or {}
    classes = [auto_class for auto_class in auto_map if auto_class != "AutoConfig"]
    text = _CARD_TEXT.format(
        header="\n".join(f"{key}: {value}" for key, value in entries.items() if value),
        ours=_OURS,
        name=name,
        version=__version__,
        mechanisms="\n".join(
            f"* {where}: " + ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
            for where, values in mechanisms.items()
        )
        or "* nothing: plain attention",
        origin=f"\nIt was made from `{base}`.\n" if base else "",
        otherwise=_WITH_CODE.format(code=auto_map[classes[-1]].split(".")[0] + ".py", auto_class=classes[-1])
        if classes
        else _REFUSED,
    )
    write_text(path, text)


def _card_of(base: str) -> str:
    """The card of a model in a folder or in the hub's cache; empty if there is none."""
    path: Any = Path(base, _CARD)
    if base and not Path(base).exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(base, _CARD)
        except HFValidationError:
            return ""
    is_found = bool(base) and isinstance(path, (str, Path)) and Path(path).is_file()
    return Path(path).read_text(encoding="utf-8", errors="replace") if is_found else ""


def _entry(card: str, name: str) -> str:
    """A value in the header of ``card``, if it is one word."""
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(rf"^{name}: *([\w./-]+) *$", header[1], re.MULTILINE) if header else None
    return found[1] if found else ""


def check_weights(
    folder: str | PathLike[str], model: Any, info: Mapping[str, Any], *, may_miss_head: bool, may_have_other_head: bool
) -> None:
    """Check that a model has all weights of its folder, and the folder all of the model.

    Args:
        folder: the folder of the weights.
        model: as transformers loaded it.
        info: what transformers says of the weights (``output_loading_info``).
        may_miss_head: whether the model's class is not the one that saved it, so that its head is new.
        may_have_other_head: whether the folder may have weights outside the base model's layers, such as another
            head's, or a pooler's in BERT's checkpoints.

    Raises:
        LoadError: weights are missing (transformers has initialised them at random), or weights are left over.
    """

    def in_base(key: str) -> bool:
        first, _, _ = key.partition(".")
        return first == model.base_model_prefix or hasattr(model.base_model, first)

    def in_layer(key: str) -> bool:
        return in_base(key) and any(part.isdigit() for part in key.split("."))

    missing = sorted(key for key in info["missing_keys"] if not may_miss_head or in_base(key))
    unexpected = sorted(key for key in info["unexpected_keys"] if not may_have_other_head or in_layer(key))
    if missing:
        raise LoadError(f"{folder}: it lacks {len(missing)} weights, such as {missing[0]}")
    if unexpected:
        raise LoadError(
            f"{folder}: it has, and has no place for, {len(unexpected)} weights, such as {unexpected[0]}: its "
            "configuration is not the one that it was saved with"
        )
