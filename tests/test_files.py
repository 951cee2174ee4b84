from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exsel.errors import ExselError, LoadError
from exsel.files import MANIFEST, check_sealed, locked, read_json, seal, write_json, write_text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"name": "höher", "values": [1, 2.5, None]})
    assert read_json(path) == {"name": "höher", "values": [1, 2.5, None]}
    assert "höher" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_lacks_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000], ids=lambda text: text[:4])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ExselError, match=r"file\.json is not JSON") as caught:
        read_json(path)
    assert len(str(caught.value).splitlines()) == 1


def write_sealed(folder: Path) -> list[Path]:
    paths = [folder / "one", folder / "below" / "two"]
    (folder / "below").mkdir()
    for path in paths:
        path.write_text("content")
        path.chmod(0o600)
    (folder / "notes").write_text("mine")
    seal(folder, [folder / "one", folder / "below"])
    return paths


def test_sealed_files_are_known_again(tmp_path: Path) -> None:
    paths = write_sealed(tmp_path)
    (tmp_path / "notes").write_text("changed")
    assert check_sealed(tmp_path) == {"one", "below/two"}
    assert check_sealed(tmp_path / "below") == {"below/two"}
    assert check_sealed(tmp_path / "below" / "deeper") == set()
    # As readable as any other new file.
    assert {path.stat().st_mode for path in paths} == {(tmp_path / "notes").stat().st_mode}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "one").unlink(), "one is missing"),
        (lambda folder: (folder / "below" / "two").write_text("contend"), "two has changed since it was saved"),
        (lambda folder: (folder / MANIFEST).write_text("{"), f"{MANIFEST} is not JSON"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), f"{MANIFEST} is not a JSON object"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), f"{MANIFEST} holds no hashes"),
        (lambda folder: (folder / MANIFEST).write_text('{"sha256": {"one": 1}}'), "one has changed"),
    ],
)
def test_what_has_changed_is_named(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    write_sealed(tmp_path)
    damage(tmp_path)
    with pytest.raises(LoadError, match=message):
        check_sealed(tmp_path)


def test_a_folder_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    script = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ExselError, match="another process is at work in"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path), pytest.raises(ExselError, match="another process"), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_remarked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked"), locked(tmp_path):
        pass
