"""Files that are written whole or not at all, hashes that show changes, and a lock for a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exsel.errors import ExselError, LoadError, first_line

#: The file with the SHA-256 of the files beside and below it.
MANIFEST = "exsel-manifest.json"


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: a reader sees the old text or the new, also after an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # The error of a failed write, unlike that of open, does not name the file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented; see :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, or raise an ExselError if the file is not JSON, or too long or too deeply nested for Python."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExselError(f"{path} is not JSON ({first_line(error)}): restore or replace it") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise an ExselError if the file holds something else."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ExselError(f"{path} is not a JSON object: restore or replace it")
    return values


def seal(folder: Path, paths: Iterable[Path]) -> None:
    """Write the hashes of files into the manifest of a folder, and give the files the mode of new files.

    safetensors makes files that only their owner can read. A folder among the paths stands for all files in it.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    hashes = {file.relative_to(folder).as_posix(): file_sha256(file) for file in files if file.is_file()}
    write_json(folder / MANIFEST, {"sha256": hashes})
    for name in hashes:
        shutil.copymode(folder / MANIFEST, folder / name)


def reseal(folder: Path, paths: Iterable[Path]) -> None:
    """Note the hashes of files that were changed on purpose in the manifest, if :func:`check_sealed` would find one."""
    if (home := _sealed_home(folder)) is not None:
        values = read_object(home / MANIFEST)
        values["sha256"] |= {path.relative_to(home).as_posix(): file_sha256(path) for path in paths}
        write_json(home / MANIFEST, values)


def check_sealed(folder: Path) -> set[str]:
    """Check the files of a folder by the manifest in it, or in the folder above.

    Returned are the paths of the checked files, relative to the manifest's folder; none without a manifest.

    Raises:
        LoadError: one is missing or has changed, or the manifest itself is damaged.
    """
    home = _sealed_home(folder)
    if home is None:
        return set()
    path = home / MANIFEST
    try:
        hashes = read_object(path).get("sha256")
    except ExselError as error:
        raise LoadError(str(error)) from error
    if not isinstance(hashes, dict) or not hashes:
        raise LoadError(f"{path} holds no hashes: it is damaged")
    names = {name for name in hashes if (home / name).is_relative_to(folder)}
    for name in sorted(names):
        if not (home / name).is_file():
            raise LoadError(f"{home / name} is missing, which {MANIFEST} names")
        if file_sha256(home / name) != hashes[name]:
            raise LoadError(f"{home / name} has changed since it was saved, by its hash in {MANIFEST}")
    return names


def _sealed_home(folder: Path) -> Path | None:
    return next((home for home in (folder, folder.parent) if (home / MANIFEST).is_file()), None)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path | None:
    """exsel's folder in the user's cache; None where there is none and none can be made."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "exsel"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of an output folder while the block runs.

    The system releases the lock when the process ends, however it ends. No file is left behind.

    Raises:
        ExselError: another process is at work there.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExselError(
                f"another process is at work in {folder}: wait until it has ended, or choose another folder"
            ) from None
        except OSError as error:
            # Some network file systems have no locks.
            warnings.warn(f"{folder} cannot be locked ({first_line(error)}): start nothing else in it", stacklevel=3)
        yield
    finally:
        os.close(descriptor)
