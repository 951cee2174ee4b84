"""``python -m evidence survey`` from its flags to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evidence.__main__ import main


def test_types_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survey", "--types", "gpt2,deepseek_v3", "--json", str(tmp_path / "survey.json")]) == 0
    survey = json.loads((tmp_path / "survey.json").read_text())
    assert survey["counts"] == {"verified": 1, "refused": 1}
    assert survey["records"][0]["layers"] == survey["records"][0]["called"] == 2
    assert "latent attention" in survey["records"][1]["reasons"][0]
    assert "refused by name" in capsys.readouterr().out


def test_an_unknown_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survey", "--types", "gpt2,no_such"]) == 2
    assert "no model type 'no_such'" in capsys.readouterr().err
