"""Every kind of option and data, from training to a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.integrations import is_tensorboard_available

from cli.conftest import run_main


def train_and_use(flags: list[str], folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """Train, evaluate and generate; returns the run's result."""
    outcome = run_main("train", *flags, "--lr", "1e-2", *arguments, "--out", folder)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    data = flags[flags.index("--data") + 1]
    evaluated = run_main("eval", folder, "--data", data, "--max-sequences", "4", "--json", folder / "eval.json")
    assert evaluated.code == 0, evaluated.err
    generated = run_main("generate", folder, "--prompt", "the", "--max-new-tokens", "4")
    assert generated.code == 0, generated.err
    assert generated.out.startswith("the")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert f"validation loss {result['loss']:.4f}" in outcome.out
    assert f"model: {folder / 'model'}" in outcome.out
    return result


@pytest.mark.parametrize(
    "arguments",
    [
        ["--variant", "baseline"],
        ["--variant", "exclusive", "--exclusive", "strength=learned", "layers=last:1"],
        ["--variant", "exclusive", "--exclusive", "layers=0,1", "strength=0.5"],
        ["--variant", "selective", "--selective", "token=mlp"],
        ["--variant", "selective", "--selective", "token=frequency"],
        ["--variant", "selective", "--selective", "token=none", "key=true", "per_head=false"],
        ["--variant", "exclusive+selective", "--pack", "isolate"],
        ["--variant", "exclusive+selective", "--dtype", "bfloat16"],
        ["--variant", "exclusive+selective", "--accumulation", "2"],
    ],
    ids=lambda arguments: " ".join(arguments[1:]),
)
def test_options(flags: list[str], tmp_path: Path, arguments: list[str]) -> None:
    result = train_and_use(flags, tmp_path / "run", *arguments)
    assert result["train_curve"][-1]["loss"] < result["train_curve"][0]["loss"] - 0.5


def test_options_reach_the_model(flags: list[str], tmp_path: Path) -> None:
    arguments = ["--variant", "exclusive+selective", "--exclusive", "strength=learned", "layers=last:1"]
    result = train_and_use(flags, tmp_path / "run", *arguments, "--selective", "token=none", "value=false")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["exclusive"] == {"layers": "last:1", "strength": "learned"}
    assert config["selective"]["token"] == "none"
    assert config["selective"]["value"] is False
    # A γ for each of 2 heads in the last layer, an a for each of 2 heads in both.
    assert result["new_parameters"] == 2 + 4
    assert [layer["before_exclusion"] is None for layer in result["similarity"]] == [True, False]


TEXTS = [f"{index}: the quick brown fox jumps over the lazy dog, again and again." for index in range(60)]


@pytest.mark.parametrize("field", ["text", "body"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows(flags: list[str], tmp_path: Path, suffix: str, field: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps({field: text, "other": 1}) + "\n" for text in TEXTS))
    else:
        pq.write_table(pa.table({field: TEXTS, "other": range(60)}), path)
    outcome = run_main("train", *flags, "--data", path, "--text-field", field, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    first, second, *_ = outcome.out.splitlines()
    assert first == f"to train: baseline; seed 0; into {tmp_path / 'run'}"
    assert second.startswith(f"data: {path}, ")


def test_several_values_of_data(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    values = [tmp_path / "*.txt", tmp_path / "b.jsonl"]
    outcome = run_main("train", *flags, "--data", *values, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err


def test_a_tokenizer_file(flags: list[str], tmp_path: Path) -> None:
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**alphabet, "th": 256, "the": 257}, merges=[("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    train_and_use(flags, tmp_path / "run", "--tokenizer", path)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (259, 258)


def test_a_llama_configuration(flags: list[str], tmp_path: Path) -> None:
    values = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    train_and_use(flags, tmp_path / "run", "--model", tmp_path / "config.json", "--variant", "exclusive")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["model_type"], config["norm"], config["mlp"]) == ("exsel", "rmsnorm", "swiglu")


@pytest.mark.skipif(not is_tensorboard_available(), reason="needs tensorboard")
def test_tensorboard(flags: list[str], tmp_path: Path) -> None:
    outcome = run_main("train", *flags, "--report-to", "tensorboard", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert list((tmp_path / "run" / "runs").rglob("events.out.tfevents.*"))
    assert run_main("train", *flags, "--overwrite", "--out", tmp_path / "run").code == 0
    assert not (tmp_path / "run" / "runs").exists()
