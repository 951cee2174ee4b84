"""Load a saved model, upgraded or not, as what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from exsel.errors import ExselError, LoadError, explained, require
from exsel.files import check_sealed, read_object
from exsel.registration import HOW_TO_LOAD
from exsel.registration.weights import check_weights

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
            weights are in no safetensors file; a configuration or an index that is damaged, or leads out of the
            folder or to a hub's code; weights that are missing or left over; mechanisms of a later version, or that
            do not fit the model; a file of a checkpoint or a run of exsel's that has changed since it was saved.
        OSError: no such folder, as transformers says it.
    """
    with_info = kwargs.pop("output_loading_info", False)
    model, info = load(folder, **kwargs)
    return (model, info) if with_info else model


def load(folder: str | PathLike[str], auto_class: Any = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """As :func:`from_pretrained`, and what transformers says of the weights.

    Args:
        folder, **kwargs: as there.
        auto_class: one of transformers', to load the model as something else than what saved it.
    """
    require("transformers", "models")
    from transformers import AutoModel

    from exsel.models.modeling import ExselPreTrainedModel
    from exsel.upgrading import wrapping

    if kwargs.pop("trust_remote_code", None):
        raise LoadError("exsel.from_pretrained runs no code from a model's folder: load it with transformers' classes")
    if kwargs.pop("use_safetensors", True) is False or kwargs.get("gguf_file") is not None:
        raise LoadError("exsel.from_pretrained reads safetensors files alone: leave use_safetensors and gguf_file out")
    if "config" in kwargs:
        raise LoadError("exsel.from_pretrained goes by the folder's own configuration: leave config out")
    check_sealed(Path(folder, kwargs.get("subfolder") or ""))
    config = load_config(folder, **kwargs)
    model_class = auto_class or wrapping.model_class_of(config)
    if model_class is None and config.architectures:
        raise LoadError(
            f"{folder} was saved by {config.architectures[0]}, which is unknown here as a model of a "
            f"{config.model_type} configuration: import the package that registers it with transformers' Auto classes"
        )
    with damage(f"{folder}: damaged, or of another version of transformers"):
        model, info = (model_class or AutoModel).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **kwargs
        )
    # Those have checked it themselves, and know which mechanisms may start anew.
    if not issubclass(model_class or AutoModel, (wrapping.UpgradingLoader, ExselPreTrainedModel)):
        check_weights(folder, model, info, may_miss_head=False, may_have_other_head=True)
    return model, info


def load_config(folder: str | PathLike[str], **kwargs: Any) -> Any:
    """The configuration of a saved model whose files were checked by :func:`check_files`.

    Args:
        folder, **kwargs: see :func:`from_pretrained`.

    Raises:
        LoadError, OSError: see :func:`from_pretrained`.
    """
    from transformers import AutoConfig

    import exsel.models  # noqa: F401 (registers its own)
    from exsel.upgrading import wrapping

    check_files(folder, **kwargs)
    places = {name: kwargs[name] for name in wrapping.PLACES if name in kwargs}
    with damage(f"{folder}: damaged, or of another version of transformers"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **places)


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Within, whatever a damaged file has another library raise is a :class:`LoadError` that begins with ``what``."""
    try:
        with explained(what):
            yield
    except ExselError as error:
        cause = error.__cause__ or error
        # What is missing transformers says itself; what is one of ours already says enough.
        if isinstance(cause, (OSError, ExselError)):
            raise cause from None
        raise LoadError(str(error)) from cause


def check_files(folder: str | PathLike[str], **kwargs: Any) -> None:
    """Check that a saved model is read from safetensors files in its own folder, and brings no code.

    Args:
        folder, **kwargs: see :func:`from_pretrained`.

    Raises:
        LoadError: naming what is not so.
    """
    here = Path(folder, kwargs.get("subfolder") or "")
    if here.is_dir():
        for path in sorted(here.iterdir()):
            if path.suffix in (".json", ".safetensors"):
                check_inside(path, Path(folder))
        if (pickles := sorted(here.glob("*.bin"))) and not any(here.glob("*.safetensors*")):
            raise LoadError(
                f"{folder} has its weights in pickle files alone ({pickles[0].name}), which can run code: load it with "
                "transformers where it is trusted, and save it again"
            )
    config = _read(folder, "config.json", kwargs)
    if config is None:
        return
    if _read(folder, "adapter_config.json", kwargs) is not None:
        raise LoadError(f"{folder} holds an adapter beside its model (adapter_config.json): load it with PEFT")
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise LoadError(f"{folder}: config.json has architectures {architectures!r:.80}, which are no names")
    _check_implementations(folder, config)
    named = config.get("transformers_weights")
    variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    index = f"model.safetensors.index{variant}.json"
    if named is not None and named != HOW_TO_LOAD:
        _check_name(folder, "config.json", named, (".safetensors", ".safetensors.index.json"))
        index = named
    values = _read(folder, index, kwargs) if index.endswith(".json") else None
    if values is None:
        return
    files = values.get("weight_map")
    if not isinstance(files, dict) or not isinstance(values.get("metadata"), dict):
        raise LoadError(f"{folder}: {index} maps no weights to files: it is damaged")
    for name in files.values():
        _check_name(folder, index, name, (".safetensors",))
        if here.is_dir():
            check_inside(here / name, Path(folder))


def _read(folder: str | PathLike[str], name: str, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """A JSON object in a folder or on the hub; ``None`` where there is none."""
    from transformers.utils import cached_file

    from exsel.upgrading import wrapping

    places = {key: kwargs[key] for key in wrapping.PLACES if key in kwargs}
    try:
        path = cached_file(
            str(folder),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **places,
        )
    except OSError:
        return None  # no such folder or name, which whoever loads it says better
    try:
        return None if path is None else read_object(Path(path))
    except ExselError as error:
        raise LoadError(str(error)) from error


def check_inside(path: Path, folder: Path) -> None:
    """Check that no link leads out of ``folder``; the hub's cache consists of links into a folder of its own."""
    target, home = path.resolve(), folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(home) for home in homes):
        raise LoadError(f"{path} is a link out of the folder, to {target}: put a copy in its place")


def _check_name(folder: str | PathLike[str], file: str, name: Any, endings: tuple[str, ...]) -> None:
    """Check the name of a weights file that ``file`` gives."""
    if not isinstance(name, str) or not name.endswith(endings):
        raise LoadError(f"{folder}: {file} names {name!r:.80} as a file of weights, which is no safetensors file")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or Path(name).is_absolute():
        raise LoadError(f"{folder}: {file} names {name!r:.80} as a file of weights, which is out of the folder")


def _check_implementations(folder: str | PathLike[str], values: Any) -> None:
    """Check that no part of a configuration names its attention's, or its experts', implementation on a hub."""
    stack = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        if not isinstance(value, dict):
            continue
        stack += value.values()
        for key, given in value.items():
            names = given.values() if isinstance(given, dict) else [given]
            if "_implementation" in key and any(isinstance(name, str) and "/" in name for name in names):
                raise LoadError(
                    f"{folder}: config.json names {given!r:.80} as its {key.strip('_')}, which would be fetched from a "
                    "hub and run: take it out"
                )
