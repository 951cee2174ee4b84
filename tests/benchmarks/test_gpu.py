"""evidence/benchmarks/gpu.py: every item can be done, is kept when it is done, and none ends the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evidence.benchmarks import gpu, tables
from evidence.benchmarks.__main__ import main
from exsel.variants import VARIANTS


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
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    trainings = gpu.training_results(json.loads(out.read_text()))
    assert {(one["variant"], one["seed"]) for one in trainings} == {
        (name, seed) for name in VARIANTS for seed in (0, 1)
    }
    assert len({one["loss"] for one in trainings}) == 8
    assert max(one["loss"] for one in trainings) < 6

    # What is in a committed file stands on the pages.
    as_measured = json.loads(out.read_text()) | {"device": "cuda", "dtype": "bfloat16"}
    as_measured["machine"]["device"] = "NVIDIA H200"
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "h200.json").write_text(json.dumps(as_measured))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    sections = tables.performance_sections()
    for name in ("attention", "long"):  # blocks are compiled, which rehearsals do not
        assert "**NVIDIA H200**, torch" in sections[name]
        assert "**CPU**: not measured" in sections[name]
    assert "| **GPU**: NVIDIA H200 |" in sections["goals"]
    assert "## On a GPU: NVIDIA H200" in tables.results_text([])

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
