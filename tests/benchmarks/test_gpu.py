"""evidence/benchmarks/gpu.py: every item can be done, is kept when it is done, and none ends the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evidence.benchmarks import gpu
from evidence.benchmarks.__main__ import main


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go. Nothing is compiled and the GPU's tests are not collected: both take long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("exsel.bench.measuring.can_compile", lambda: False)
    monkeypatch.setitem(gpu.SUBJECTS, "tests", lambda *_: {"result": {"summary": "1 passed"}})
    return tmp_path / "gpu.json"


def entries(out: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(out.read_text())["items"]
    return kept


def test_stopped_resumed_and_whole(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = gpu.SUBJECTS["step"]

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.SUBJECTS, "step", stop)
    assert main(["gpu", "--rehearse", "--out", str(out)]) == 1
    first = entries(out)
    assert [entry["outcome"] for entry in first.values()] == ["done", "done", "stopped"]
    assert main(["gpu", "--rehearse", "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err

    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(gpu.SUBJECTS, "step", real)
    monkeypatch.setitem(gpu.SUBJECTS, "decode", fail)
    assert main(["gpu", "--rehearse", "--out", str(out), "--resume"]) == 1
    kept = entries(out)
    assert list(kept.items())[:2] == list(first.items())[:2]
    by_subject = {name.split()[0]: entry for name, entry in kept.items()}
    assert set(by_subject) == set(gpu.SUBJECTS) == {item.subject for item in gpu.ITEMS}
    failed = by_subject.pop("decode")
    assert failed["outcome"] == "failed"
    assert failed["error"].rstrip().endswith("an illegal memory access was encountered")
    assert {entry["outcome"] for entry in by_subject.values()} == {"done"}
    measured = {row["contender"] for entry in by_subject.values() for row in entry.get("rows", []) if row["passes"]}
    assert {"stock", "exsel sdpa", "exsel", "dense mask"} <= measured
    assert len(by_subject["training"]["result"]["runs"]) == 8

    # A failure is tried again only with other code.
    assert main(["gpu", "--rehearse", "--out", str(out), "--resume"]) == 1
    monkeypatch.setattr(gpu, "source_hash", lambda: "other")
    monkeypatch.setitem(gpu.SUBJECTS, "decode", lambda *_: {"rows": []})
    assert main(["gpu", "--rehearse", "--out", str(out), "--resume"]) == 0


def test_time_that_is_over_interrupts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setitem(gpu.SUBJECTS, "tests", lambda *_: time.sleep(60))
    assert main(["gpu", "--rehearse", "--out", str(out), "--minutes", "0.005"]) == 1
    assert [entry["outcome"] for entry in entries(out).values()] == ["stopped"]


def test_no_gpu_and_no_place_are_said_before_anything(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--rehearse"]) == 2
    assert "--out" in capsys.readouterr().err
    if not gpu.torch.cuda.is_available():
        assert main(["gpu", "--out", str(out)]) == 2
        assert not out.exists()
