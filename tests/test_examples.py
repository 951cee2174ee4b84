"""The examples run as a user runs them, and leave what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = {"gpt2", "llama", "vit"}


def test_each_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_example(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["exsel"]["base"]["model_type"] == name
    assert done.stdout
