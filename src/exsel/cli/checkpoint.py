"""A saved model, found and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exsel.errors import UserError, first_line
from exsel.training.layout import MODEL, RUNS, checkpoints


def find_checkpoint(text: str) -> str:
    """The folder of a saved model: itself, the model of a run's folder, or its last checkpoint.

    Raises:
        UserError: there is none.
    """
    folder = Path(text)
    if not folder.exists():
        raise UserError(f"no such folder: {text}")
    for candidate in (folder, folder / MODEL, *reversed(checkpoints(folder))):
        if (candidate / "config.json").is_file():
            return str(candidate)
    inner = sorted(str(path) for path in (folder / RUNS).glob("*") if path.is_dir())
    hint = f"; it holds several, such as {inner[0]}" if inner else ""
    raise UserError(f"{text} holds no saved model (a folder with config.json){hint}")


def load_checkpoint(text: str, device: str) -> tuple[Any, Any]:
    """A saved model on ``device``, in evaluation mode, and its tokenizer; safetensors only.

    Raises:
        UserError: none there, or a damaged one.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    import exsel.models  # noqa: F401 (registers the model's type)

    folder = find_checkpoint(text)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        # transformers would fill them with random numbers.
        raise UserError(f"{folder} cannot be loaded: its file lacks {len(missing)} weights, such as {missing[0]}")
    return model.to(device).eval(), tokenizer


def check_length(model: Any, tokens: int) -> None:
    """Check that a model with learned positions has as many; rotary ones go on for ever.

    Raises:
        UserError: it has fewer.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and getattr(model.config, "rope_parameters", None) is None and tokens > limit:
        raise UserError(f"this model has positions for {limit} tokens, not for {tokens}: ask for fewer")
