from __future__ import annotations

import json
from pathlib import Path

import pytest

from exsel.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(hidden_size=8192, num_hidden_layers=3, architectures=["LlamaForCausalLM"])
    config.save_pretrained(path)  # of many gigabytes: nothing but its configuration is needed
    return path


def test_a_model_layer_by_layer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["support", str(folder), "--json", str(tmp_path / "answer.json")]) == 0
    assert "model.layers.2.self_attn" in capsys.readouterr().out
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert [layer["exclusive"] for layer in answer["layers"]] == ["yes"] * 3


def test_json_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["support", str(folder), "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["layers"]) == 3
    assert "model.layers.2.self_attn" in captured.err


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        '{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}",
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": "llama", "hidden_size": -64}',
        '{"model_type": ["llama"]}',
        "[]",
    ],
    ids=["nested", "a long number", "no heads", "a negative size", "a list for a name", "a list"],
)
def test_damaged_configurations(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(text)
    assert main(["support", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"exsel: {tmp_path}")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], "no such folder"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["support", *arguments]) == 2
    assert message in capsys.readouterr().err
