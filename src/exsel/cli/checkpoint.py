"""A saved model, found and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exsel.errors import ExselError, first_line
from exsel.training.layout import MODEL, RUNS, checkpoints

if TYPE_CHECKING:
    import torch


def find_checkpoint(text: str) -> str:
    """The folder of a saved model: itself, the model of a run's folder, or its last checkpoint.

    Raises:
        ExselError: there is none.
    """
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
    """The folder of a saved model as :func:`find_checkpoint`; what is no path is a name on the hub.

    Raises:
        ExselError: there is none, said of ``flag``.
    """
    if text and Path(text).exists():
        return find_checkpoint(text)
    if not text or text.startswith((".", "/", "~")):
        raise ExselError(f"{flag} {text}: no such folder".strip())
    return text


def load_checkpoint(
    text: str, device: str, *, causal: bool = True, dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """A saved model on ``device``, in evaluation mode, and its tokenizer; safetensors only.

    Args:
        text: a folder, see :func:`find_checkpoint`; with ``causal=False`` also a name on the hub, or the folder of an
            adapter of PEFT.
        device: where to.
        causal, dtype: see :func:`exsel.training.loading.load_whole`.

    Raises:
        ExselError: none there, or a damaged one.
    """
    from transformers import AutoTokenizer

    from exsel.training.loading import ADAPTER, is_offline, load_whole

    is_adapter = not causal and (Path(text) / ADAPTER).is_file()
    source = text if is_adapter else find_checkpoint(text) if causal else find_model(text)
    model = load_whole(source, causal=causal, dtype=dtype)
    home = source
    if is_adapter and not (Path(source) / "tokenizer_config.json").is_file():
        home = model.peft_config[model.active_adapter].base_model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(home, trust_remote_code=False, local_files_only=is_offline(home))
    except ExselError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = first_line(error).rstrip(": ")
        hint = "" if causal else "; a model that reads no text goes to exsel.diagnose(model, batches) in Python"
        raise ExselError(f"{home} cannot be loaded: its tokenizer is damaged or missing ({reason}){hint}") from error
    return model.to(device).eval(), tokenizer


def read_context(text: str) -> int | None:
    """How many tokens a model was made for, from its configuration alone; ``None`` where it does not say.

    Args:
        text: see :func:`load_checkpoint` with ``causal=False``.

    Raises:
        ExselError: none there, or a damaged one.
    """
    from transformers import AutoConfig

    from exsel.files import read_json
    from exsel.training.finetuning import source_context
    from exsel.training.loading import ADAPTER, is_offline

    adapter = Path(text) / ADAPTER
    if adapter.is_file():
        text = str(read_json(adapter).get("base_model_name_or_path") or text)
    source = find_model(text)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=is_offline(source))
    except ExselError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        if is_offline(source):
            raise ExselError(f"{text}: neither a folder with a saved model nor one on the hub") from error
        raise ExselError(f"{source} cannot be loaded: {first_line(error)}") from error
    return source_context(config)


def check_length(model: Any, tokens: int) -> None:
    """Check that a model with learned positions has as many; rotary ones go on for ever.

    Raises:
        ExselError: it has fewer.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and getattr(model.config, "rope_parameters", None) is None and tokens > limit:
        raise ExselError(f"this model has positions for {limit} tokens, not for {tokens}: ask for fewer")
