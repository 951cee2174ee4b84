"""The examples run, and leave what they say."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import exsel
from exsel.cli import main
from forked import run_ranks

pytestmark = pytest.mark.first

EXAMPLES = Path(__file__).parent.parent / "examples"
UPGRADES = ("gpt2", "llama", "vit")

Run = Callable[[str, Path], str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example, and the commands that it starts, in this process, which has imported torch and transformers."""

    start = subprocess.run

    def start_or_call(command: Sequence[str], **options: Any) -> Any:
        if command[:3] != [sys.executable, "-m", "exsel"]:
            return start(command, **options)
        assert main(list(command[3:])) == 0
        return None

    def run_here(name: str, folder: Path) -> str:
        monkeypatch.setattr(subprocess, "run", start_or_call)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(folder)])
        monkeypatch.setattr(sys, "path", [*sys.path])  # a model of one's own puts its folder there
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_here


def test_each_is_here_and_short() -> None:
    examples = list(EXAMPLES.glob("*.py"))
    assert {path.stem for path in examples} == {*UPGRADES, "compare", "look", "own_model", "pretrain"}
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 60 for path in examples)


@pytest.mark.parametrize("name", UPGRADES)
def test_upgrade(run: Run, name: str, tmp_path: Path) -> None:
    assert run(name, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["exsel"]["base"]["model_type"] == name


def test_compare(run: Run, tmp_path: Path) -> None:
    last = run("compare", tmp_path).splitlines()[-2:]
    assert [line.split()[:2] for line in last] == [["baseline", "loss"], ["exclusive", "loss"]]
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_own_model(run: Run, tmp_path: Path) -> None:
    assert "\nexclusive+selective  " in run("own_model", tmp_path)
    runs = [path.parent for path in (tmp_path / "comparison" / "runs").rglob("own_model.json")]
    assert len(runs) == 4
    assert all((folder / "model.safetensors").is_file() for folder in runs)


def test_look(run: Run, tmp_path: Path) -> None:
    lines = run("look", tmp_path / "seen").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["plain", "plain", "upgraded", "upgraded"]
    assert (tmp_path / "seen" / "report.html").is_file()


def test_pretrain_on_two_processes(tmp_path: Path) -> None:
    code = f"import runpy\nrunpy.run_path({str(EXAMPLES / 'pretrain.py')!r}, run_name='__main__')"
    assert "on 2 processes" in run_ranks(code, str(tmp_path))
    model = exsel.from_pretrained(tmp_path)
    assert model(input_ids=torch.tensor([list(b"Attention that leaves itself out")])).logits.isfinite().all()
