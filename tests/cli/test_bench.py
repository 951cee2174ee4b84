"""``exsel bench`` from its flags to its files."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.conftest import Outcome, run_main
from cli.test_mistakes import assert_refused
from exsel.bench.attention import NAMES
from exsel.bench.cases import SHAPES
from exsel.bench.measuring import CpuClock, Work
from exsel.bench.session import SUBJECTS
from exsel.machine import can_compile

SMALL = ["--device", "cpu", "--shapes", "2x1x16", "--rounds", "2"]
QUICK = ["--contenders", "eager normalize,compiled normalize,exsel sdpa"]
NO_COMPILER = ("exsel.bench.measuring.can_compile", lambda: False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*NO_COMPILER)  # so that a contender is refused
        outcome = run_main("bench", "attention", "decode", *SMALL, *QUICK, "--seq-lens", "16", "--out", folder)
    return outcome, folder


def test_it_ends_with_a_table_and_files(measured: tuple[Outcome, Path]) -> None:
    outcome, folder = measured
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert re.match(r"Case +Group +Contender +ms +Forward +Backward +Whole +Kept for backward$", lines[0])
    assert re.match(r"attention 2x1x16, 256 × 16 tokens +baseline +stock +[\d.,]+ +1\.000× +1\.000×", lines[1])
    assert any(re.search(r" exclusive +exsel sdpa +[\d.,]+ +\d+\.\d{3}×", line) for line in lines)
    assert any(re.search(r" exclusive +compiled normalize +–( +–)+$", line) for line in lines)
    refusal = "compiled normalize, not measured (attention 2x1x16, 256 × 16 tokens and 2 more): "
    assert any(line.startswith(refusal) for line in lines)
    assert f"numbers: {folder / 'bench.json'}" in lines
    names = {"bench.json", "attention.svg", "attention.png", "decode.svg", "decode.png"}
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "bench.json").read_text())
    assert record["command"].startswith("exsel bench attention decode --device cpu")
    assert {row["subject"] for row in record["rows"]} == {"attention", "decode"}


def test_progress_goes_to_standard_error(measured: tuple[Outcome, Path]) -> None:
    lines = measured[0].err.splitlines()
    assert lines[0] == "attention 2x1x16, 256 × 16 tokens (case 1 of 3)"
    assert lines[1] == "  preparing stock (baseline)"
    assert "\x1b" not in measured[0].err


def test_results_are_not_replaced_unasked(measured: tuple[Outcome, Path]) -> None:
    folder = measured[1]
    before = (folder / "bench.json").read_bytes()
    again = run_main("bench", *SMALL, *QUICK, "--seq-lens", "16", "--out", folder)
    assert_refused(again, f"--out {folder} is not empty: add --overwrite to replace it")
    assert (folder / "bench.json").read_bytes() == before


@pytest.mark.parametrize("flag", [[], ["--overwrite"]])
@pytest.mark.parametrize("files", [{"thesis.tex": ""}, {"bench.json": "{}"}])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, flag: list[str], files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    outcome = run_main("bench", *SMALL, *QUICK, "--seq-lens", "16", *flag, "--out", tmp_path)
    assert_refused(outcome, f"--out {tmp_path} holds files that `exsel bench` did not write: choose another folder")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_what_is_replaced_leaves_no_pictures_of_other_subjects(
    measured: tuple[Outcome, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(measured[1], folder)
    (folder / "notes.md").write_text("mine")
    record = json.loads((folder / "bench.json").read_text())
    record["rows"] = [row for row in record["rows"] if row["subject"] == "attention"]
    monkeypatch.setattr("exsel.bench.session.run", lambda *_, **__: record)
    assert run_main("bench", *SMALL, *QUICK, "--seq-lens", "16", "--overwrite", "--out", folder).code == 0
    assert {path.name for path in folder.iterdir()} == {"bench.json", "attention.svg", "attention.png", "notes.md"}


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compiled_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as a whole and differentiated ahead of time, but not translated to C++, which takes most of the time.
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    arguments = [*SMALL, "--contenders", "compiled dot", "--seq-lens", "16", "--out", str(tmp_path)]
    outcome = run_main("bench", *arguments)
    assert outcome.code == 0, outcome.err
    assert "  compiling compiled dot (exclusive)" in outcome.err.splitlines()
    (row,) = [r for r in json.loads((tmp_path / "bench.json").read_text())["rows"] if r["group"] == "exclusive"]
    assert row["refused"] is None
    assert row["saved_bytes"] > 0


def test_interrupted_it_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = CpuClock.time, []

    def time(clock: CpuClock, work: Work) -> dict[str, float]:
        calls.append(work)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return original(clock, work)

    monkeypatch.setattr(CpuClock, "time", time)
    monkeypatch.setattr(*NO_COMPILER)
    outcome = run_main("bench", *SMALL, *QUICK, "--seq-lens", "16", "--rounds", "99", "--out", tmp_path / "out")
    assert outcome.code == 130
    assert "marked partial" in outcome.err.splitlines()[-1]
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["partial"]
    assert {row["rounds"] for row in record["rows"] if row["refused"] is None} == {3}  # (20 - 1) // 5 whole rounds
    assert "1.000×" in outcome.out
    assert (tmp_path / "out" / "attention.svg").exists()


def refuse_work(*_: Any, **__: Any) -> None:
    raise AssertionError("work began")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["everything"], "no 'everything': choose from attention, block, decode"),
        (["--shapes", "9b"], "--shapes: no shape '9b': choose from tiny"),
        (["--shapes", "4x3x16"], "--shapes 4x3x16: the heads must be a multiple"),
        (["--seq-lens", "many"], "--seq-lens: not a whole number: 'many'"),
        (["--seq-lens", "512,"], "--seq-lens: not a whole number: ''"),
        (["--seq-lens", "512,0"], "--seq-lens must be at least 1, got 0"),
        (["--seq-lens", "1000000000"], "GiB of memory"),
        (["--dtype", "int8"], "--dtype: no 'int8': choose from float32, bfloat16, float16"),
        (["--contenders", "magic"], "--contenders: no 'magic': choose from eager normalize"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--device", "gpu"], "--device gpu: choose"),
        (["--device", "mps"], "--device mps"),
        (["block", "--shapes", "llama"], "--shapes llama: blocks and models come in the sizes"),
        (["block", "--model", "9b"], "--model 9b: blocks and models come in the sizes"),
        (["block", "--model", "2.7b", "--shapes", "tiny"], None),
    ],
)
def test_mistakes(arguments: list[str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exsel.bench.session.run", refuse_work)
    if message is None:  # more memory than there is, wherever this runs
        monkeypatch.setattr("exsel.bench.model_contenders.BYTES_PER_PARAMETER", 10**6)
        message = "--model 2.7b: a training step needs about"
    outcome = run_main("bench", *arguments, "--out", tmp_path / "out")
    assert_refused(outcome, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu(tmp_path: Path) -> None:
    outcome = run_main("bench", "--device", "cuda", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "--device cuda: PyTorch" in outcome.err


def test_out_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        outcome = run_main("bench", *SMALL, "--seq-lens", "16", "--out", path)
        assert outcome.code == 2
        assert f"--out {path}" in outcome.err


def test_help_names_what_there_is() -> None:
    text = " ".join(run_main("bench", "--help").out.split())
    assert all(f"{subject} (" in text for subject in SUBJECTS)
    assert f"{', '.join(SHAPES)}, or heads" in text
    assert f"beside stock: {', '.join(NAMES)} (all but the reference)" in text
