"""What a saved model's folder may not hold: code, links out of it, weights in pickle files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from exsel.errors import ExselError, LoadError, explained
from exsel.files import read_object
from exsel.model_folder import HOW_TO_LOAD

#: Arguments that say where files are. ``AutoConfig.from_pretrained`` consumes them, and the model needs them too.
PLACES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn an error that a damaged file causes in a library into a :class:`LoadError` that begins with ``what``."""
    try:
        with explained(what):
            yield
    except ExselError as error:
        cause = error.__cause__ or error
        # An OSError of transformers names the missing file, and exsel's own errors say enough.
        if isinstance(cause, (OSError, ExselError)):
            raise cause from None
        raise LoadError(str(error)) from cause


def check_files(folder: str | PathLike[str], **kwargs: Any) -> None:
    """Check that what :func:`exsel.from_pretrained` is given is read from safetensors files, and brings no code."""
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
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise LoadError(f"{folder}: config.json has architectures {names!r:.80}, which are no names")
    _check_implementations(folder, config)
    variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    index = f"model.safetensors.index{variant}.json"
    if config.get("transformers_weights") not in (None, HOW_TO_LOAD):
        index = config["transformers_weights"]
        _check_name(folder, "config.json", index, (".safetensors", ".safetensors.index.json"))
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
    """Read a JSON object in a folder or on the hub; ``None`` if there is none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(str(folder), name, **{key: kwargs[key] for key in PLACES if key in kwargs})
    except OSError:
        return None  # No such file. Of no such folder or name the loader's own error says more.
    try:
        return read_object(Path(path))
    except ExselError as error:
        raise LoadError(str(error)) from error


def check_inside(path: Path, folder: Path) -> None:
    """Check that no link leads out of ``folder``. The hub's cache may: its files are links into ``blobs`` beside it."""
    target, home = path.resolve(), folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(home) for home in homes):
        raise LoadError(f"{path} is a link out of the folder, to {target}: put a copy in its place")


def _check_name(folder: str | PathLike[str], file: str, name: Any, endings: tuple[str, ...]) -> None:
    """Check ``name``, which ``file`` gives as the name of a weights file."""
    if not isinstance(name, str) or not name.endswith(endings):
        raise LoadError(f"{folder}: {file} names {name!r:.80} as a file of weights, which is no safetensors file")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or Path(name).is_absolute():
        raise LoadError(f"{folder}: {file} names {name!r:.80} as a file of weights, which is out of the folder")


def _check_implementations(folder: str | PathLike[str], values: Any) -> None:
    """Check that no part of a configuration names an implementation of attention or experts on a hub."""
    parts = [values]  # a loop: deep nesting would exceed Python's recursion limit
    for part in parts:
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        parts += part.values()
        for key, given in part.items():
            names = given.values() if isinstance(given, dict) else [given]
            if "_implementation" in key and any(isinstance(name, str) and "/" in name for name in names):
                raise LoadError(
                    f"{folder}: config.json names {given!r:.80} as its {key.strip('_')}, which would be fetched from a "
                    "hub and run: take it out"
                )
