from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from exsel.errors import ExselError
from exsel.files import read_json, write_json, write_text


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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ExselError, match=r"file\.json is not JSON"):
        read_json(path)
