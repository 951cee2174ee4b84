"""Load a saved model, upgraded or not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from exsel.errors import LoadError, require
from exsel.files import check_sealed
from exsel.model_folder import check_weights
from exsel.upgrading.folder_checks import PLACES, check_files, damage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    class LoadedModel(PreTrainedModel):  # type: ignore[misc]
        """The static type of a loaded model. Type checkers reject transformers' own annotations of these methods."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """As in the class that saved the model, if it has this method."""

        def to(self, *args: Any, **kwargs: Any) -> Self:
            """As in ``torch.nn.Module``."""


@overload
def from_pretrained(
    folder: str | PathLike[str], *, output_loading_info: Literal[False] = False, **kwargs: Any
) -> LoadedModel: ...


@overload
def from_pretrained(
    folder: str | PathLike[str], *, output_loading_info: Literal[True], **kwargs: Any
) -> tuple[LoadedModel, dict[str, Any]]: ...


def from_pretrained(folder: str | PathLike[str], **kwargs: Any) -> Any:
    """Load a model with the class that saved it: upgraded, one of exsel's own, or any of transformers'.

    Args:
        folder: a folder that ``save_pretrained`` wrote, or the name of a model on a hub.
        **kwargs: as transformers' ``from_pretrained`` takes them: ``dtype``, ``device_map``, ``subfolder``,
            ``quantization_config``, ``distributed_config``, a value of the configuration, …

    Returns:
        The model in evaluation mode, its weights read from safetensors files alone; with ``output_loading_info=True``
        with a dictionary of the missing, unexpected and mismatched weights.

    Raises:
        LoadError: the model's class is not known here, its code is in its folder, or its weights are in no safetensors
            file; a configuration or an index is damaged, or points out of the folder or to code on a hub; weights are
            missing or left over; the mechanisms are of a later version, or do not fit the model; a file of exsel's
            checkpoint or run has changed since it was saved.
        OSError: no such folder or name (transformers' error).
    """
    with_info = kwargs.pop("output_loading_info", False)
    model, info = load(folder, **kwargs)
    return (model, info) if with_info else model


def load(folder: str | PathLike[str], auto_class: Any = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """As :func:`from_pretrained`, or by ``auto_class`` of transformers; always returns what is said of the weights."""
    require("transformers", "models")
    if kwargs.pop("trust_remote_code", None):
        raise LoadError("exsel.from_pretrained runs no code from a model's folder: load it with transformers' classes")
    if kwargs.pop("use_safetensors", True) is False or kwargs.get("gguf_file") is not None:
        raise LoadError("exsel.from_pretrained reads safetensors files alone: leave use_safetensors and gguf_file out")
    if "config" in kwargs:
        raise LoadError("exsel.from_pretrained goes by the folder's own configuration: leave config out")
    check_sealed(Path(folder, kwargs.get("subfolder") or ""))
    return load_checked(folder, auto_class, **kwargs)


def load_checked(folder: str | PathLike[str], auto_class: Any = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """As :func:`load`, where :func:`exsel.files.check_sealed` has checked the folder's hashes already."""
    from transformers import AutoModel

    from exsel.models.modeling import ExselPreTrainedModel
    from exsel.upgrading import transformers_models

    config = load_config(folder, **kwargs)
    model_class = auto_class or transformers_models.model_class_of(config)
    if model_class is None and config.architectures:
        raise LoadError(
            f"{folder} was saved by {config.architectures[0]}, which is unknown here as a model of a "
            f"{config.model_type} configuration: import the package that registers it with transformers' Auto classes"
        )
    with damage(f"{folder}: damaged, or of another version of transformers"):
        model, info = (model_class or AutoModel).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **kwargs
        )
    # These classes have checked the weights themselves: they know which mechanisms may be new.
    if not issubclass(model_class or AutoModel, (transformers_models.UpgradingLoader, ExselPreTrainedModel)):
        check_weights(folder, model, info, may_miss_head=False, may_have_other_head=True)
    return model, info


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and notices in the block; errors are still shown."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(level)


def load_config(folder: str | PathLike[str], **kwargs: Any) -> Any:
    """The configuration of a saved model, whose files are checked; arguments and errors as :func:`from_pretrained`."""
    from transformers import AutoConfig

    import exsel.models  # noqa: F401 (registers its own)

    check_files(folder, **kwargs)
    places = {name: kwargs[name] for name in PLACES if name in kwargs}
    with damage(f"{folder}: damaged, or of another version of transformers"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **places)
