"""The model card that a saved model gets: what it is, and that it needs exsel."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exsel.files import write_text

_NAME = "README.md"
#: A card without this line was written, or taken over, by somebody else, and stays.
_OURS = "<!-- exsel writes this card anew whenever it saves the model here; to keep your own, remove this line -->"


def write_card(folder: Path, name: str, mechanisms: Mapping[str, Mapping[str, Any]], base: str = "") -> None:
    """Write ``README.md`` into a saved model's folder, unless somebody else's is there.

    Args:
        folder: of the model.
        name: of the model's class.
        mechanisms: where each is (``"exclusive attention in …"``), and its values.
        base: from where the model was loaded: a folder, a name on the Hugging Face hub, or empty. Its own card, if
            it can be had without the network, says under which licence it is.
    """
    path = folder / _NAME
    if path.is_file() and _OURS not in path.read_text(encoding="utf-8", errors="replace"):
        return
    card = _card_of(base)
    if _OURS not in card:
        # A path on this machine tells others nothing.
        base = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else ""
    else:
        base = _entry(card, "base_model")
    entries = {"library_name": "transformers", "base_model": base, "license": _entry(card, "license")}
    header = [f"{name}: {value}" for name, value in entries.items() if value]
    lines = [
        "---",
        *header,
        "tags:",
        "- exsel",
        "---",
        "",
        _OURS,
        "",
        f"# {name} with exsel",
        "",
        "This model computes its attention with exsel, and without it transformers refuses to load it:",
        "",
        "```python",
        "import exsel  # pip install 'exsel[models]'",
        "",
        'model = exsel.from_pretrained("path/to/this/folder")',
        "```",
        "",
        "After `import exsel`, transformers' Auto classes and `pipeline` load it too. The tokenizer needs no exsel.",
        "",
        *[
            f"* {where}: " + ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
            for where, values in mechanisms.items()
        ],
    ]
    if base:
        lines += ["", f"It was made from `{base}`."]
    write_text(path, "\n".join(lines) + "\n")


def _card_of(base: str) -> str:
    """The card of a model in a folder or in the hub's cache; empty where there is none."""
    if not base:
        return ""
    path: object = Path(base, _NAME)
    if not Path(base).exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(base, _NAME)
        except HFValidationError:
            return ""
    return (
        Path(path).read_text(encoding="utf-8", errors="replace")
        if isinstance(path, (str, Path)) and Path(path).is_file()
        else ""
    )


def _entry(card: str, name: str) -> str:
    """A value in the header of ``card``, if it is one word."""
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(rf"^{name}: *([\w./-]+) *$", header[1], re.MULTILINE) if header else None
    return found[1] if found else ""
