"""The examples run as a user runs them, and leave what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import exsel

pytestmark = pytest.mark.first

EXAMPLES = Path(__file__).parent.parent / "examples"
UPGRADES = ("gpt2", "llama", "vit")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(name: str, folder: Path, *launcher: str) -> str:
    """What an example of fewer than 60 lines prints; it gets a folder to write into."""
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    done = subprocess.run(
        [sys.executable, "-W", "error", *launcher, str(path), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*UPGRADES, "compare", "look", "own_model", "pretrain"}


@pytest.mark.parametrize("name", UPGRADES)
def test_upgrade(name: str, tmp_path: Path) -> None:
    assert run(name, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["exsel"]["base"]["model_type"] == name


def test_compare(tmp_path: Path) -> None:
    last = run("compare", tmp_path).splitlines()[-2:]
    assert [line.split()[:2] for line in last] == [["baseline", "loss"], ["exclusive", "loss"]]
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_own_model(tmp_path: Path) -> None:
    assert "\nexclusive+selective  " in run("own_model", tmp_path)
    runs = [path.parent for path in (tmp_path / "comparison" / "runs").rglob("own_model.json")]
    assert len(runs) == 4
    assert all((folder / "model.safetensors").is_file() for folder in runs)


def test_look(tmp_path: Path) -> None:
    lines = run("look", tmp_path / "seen").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["plain", "plain", "upgraded", "upgraded"]
    assert (tmp_path / "seen" / "report.html").is_file()


def test_pretrain_on_two_processes(tmp_path: Path) -> None:
    assert "on 2 processes" in run("pretrain", tmp_path, *TORCHRUN)
    model = exsel.from_pretrained(tmp_path)
    assert model(input_ids=torch.tensor([list(b"Attention that leaves itself out")])).logits.isfinite().all()
