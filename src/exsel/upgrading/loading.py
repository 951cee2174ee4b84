"""Load a saved model, upgraded or not, as what it is."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from exsel.errors import LoadError, require
from exsel.files import check_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    class LoadedModel(PreTrainedModel):  # type: ignore[misc]
        """What type checkers take a loaded model for. What transformers says of these methods they reject."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """As the class that saved the model has it, if it does."""

        def to(self, *args: Any, **kwargs: Any) -> Self:
            """As ``torch.nn.Module`` has it."""


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
        in a pair with which weights were missing, unexpected or of another shape.

    Raises:
        LoadError: a model whose class nobody here knows, whose code would have to be run from its folder, or whose
            weights are in no safetensors file; mechanisms of a later version, or that do not fit the model; a file of
            a checkpoint or a run of exsel's that has changed since it was saved.
        OSError: no such folder, as transformers says it.
    """
    require("transformers", "models")
    from transformers import AutoConfig, AutoModel

    import exsel.models  # noqa: F401 (registers its own)
    from exsel.upgrading import wrapping

    if kwargs.pop("trust_remote_code", None):
        raise LoadError("exsel.from_pretrained runs no code from a model's folder: load it with transformers' classes")
    if kwargs.pop("use_safetensors", True) is False:
        raise LoadError("exsel.from_pretrained reads safetensors files alone: leave use_safetensors out")
    check_sealed(Path(folder, kwargs.get("subfolder") or ""))
    places = {name: kwargs[name] for name in wrapping.PLACES if name in kwargs}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **places)
    model_class = wrapping.model_class_of(config)
    if model_class is None and config.architectures:
        raise LoadError(
            f"{folder} was saved by {config.architectures[0]}, which is unknown here: import the package that "
            "registers it with transformers' Auto classes"
        )
    try:
        return (model_class or AutoModel).from_pretrained(folder, use_safetensors=True, **kwargs)
    except OSError as error:
        here = Path(folder, kwargs.get("subfolder", ""))
        if any(here.glob("*.bin")) and not any(here.glob("*.safetensors")):
            raise LoadError(
                f"{folder} has its weights in pickle files alone ({next(here.glob('*.bin')).name}), which can run "
                "code: load it with transformers where it is trusted, and save it again"
            ) from error
        raise
