"""A saved model with all its weights, or a clear reason why not."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import exsel.models  # noqa: F401 (registers the model's type)
from exsel.errors import ExselError, LoadError, explained, require
from exsel.hub_access import is_offline
from exsel.model_folder import ADAPTER
from exsel.upgrading.folder_checks import check_inside
from exsel.upgrading.loading import load, load_config, quiet_transformers
from exsel.upgrading.transformers_models import UpgradedFields
from exsel.variants import kind_of


def load_whole(source: str, *, called: str | None = None, causal: bool = True, dtype: torch.dtype | None = None) -> Any:
    """Load a model from safetensors files, without running code from its folder.

    Args:
        source: a folder that holds a saved model, or a name on the Hugging Face hub.
        called: its name in error messages.
        causal: load it as a causal language model; otherwise with the class that saved it, or as a PEFT adapter on
            another model.
        dtype: of its weights; by default as saved.
    """
    called = called or source
    if not causal and (Path(source) / ADAPTER).is_file():
        return _load_adapter(source, called, dtype)
    options: dict[str, Any] = {"local_files_only": is_offline(source)}
    if dtype is not None:
        options["dtype"] = dtype
    with _loading(source, called), quiet_transformers():
        model, _ = load(source, AutoModelForCausalLM if causal else None, **options)
    return model


def read_config(source: str, called: str | None = None) -> Any:
    """A model's configuration; the arguments are those of :func:`load_whole`."""
    with _loading(source, called or source):
        return load_config(source, local_files_only=is_offline(source))


def check_causal(config: Any) -> None:
    """Check that a transformers configuration is of a model that predicts the next token."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ExselError(f"a {config.model_type} model is no causal language model, which is needed")


def read_source(source: str) -> Any:
    """The configuration of the model to fine-tune, in a folder or on the hub."""
    config = read_config(source, f"--from {source}")
    with explained(f"--from {source}"):
        check_causal(config)
    if getattr(config, "quantization_config", None) is not None:
        raise ExselError(f"--from {source}: its weights are quantised: train the original, or an adapter of exsel.peft")
    return config


def source_variant(config: Any) -> str:
    """The variant of a saved model, a name in :data:`exsel.variants.VARIANTS`."""
    places = config.exsel["upgrades"] if isinstance(config, UpgradedFields) else [vars(config)]
    return kind_of({name for name in ("exclusive", "selective") if any(place.get(name) for place in places)})


def _loading(source: str, called: str) -> AbstractContextManager[None]:
    what = ": neither a folder with a saved model nor one on the hub" if is_offline(source) else " cannot be loaded"
    return explained(f"{called}{what}")


def _load_adapter(source: str, called: str, dtype: torch.dtype | None) -> Any:
    require("peft", "peft")
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    import exsel.peft  # noqa: F401 (registers the mechanisms as methods)

    weights = Path(source, "adapter_model.safetensors")
    with explained(f"{called} cannot be loaded"):
        if not weights.is_file():
            raise LoadError(f"it holds no {weights.name}, and pickle files can run code")
        for path in (weights, Path(source, ADAPTER)):
            check_inside(path, Path(source))
        base = PeftConfig.from_pretrained(source).base_model_name_or_path
        if not base:
            raise LoadError(f"its {ADAPTER} does not name the model that it belongs to")
    model = load_whole(base, called=f"{base}, the model of {called},", causal=False, dtype=dtype)
    with explained(f"{called} cannot be loaded"), quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are an error below
        adapted = PeftModel.from_pretrained(model, source)
        with safe_open(weights, framework="pt") as file:
            found = set(file.keys())
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        # An adapter may be saved with the embeddings of its model.
        leftover = found - expected - set(adapted.state_dict())
        for names, what in ((expected - found, "lacks"), (leftover, "has, and has no place for,")):
            if names:
                raise LoadError(f"it {what} {len(names)} weights, such as {min(names)}")
    return adapted
