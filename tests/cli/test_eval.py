from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from cli.conftest import run_main


def loss_by_hand(folder: Path, text: str, seq_len: int) -> tuple[float, int]:
    """In float64, block after block: mean loss, and how many tokens were predicted."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    ids = torch.tensor([byte + 3 for byte in text.encode()] + [1])
    blocks = ids[: len(ids) // seq_len * seq_len].view(-1, seq_len)
    with torch.no_grad():
        logits = model(blocks, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten(), reduction="none")
    return float(losses.mean()), len(losses)


TEXT = "the quick brown fox jumps over the lazy dog, höher. " * 8


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_equals_float64_by_hand(trained: Path, text_file: Path, tmp_path: Path) -> None:
    outcome = run_main("eval", trained, "--data", text_file, "--json", tmp_path / "numbers.json")
    assert outcome.code == 0, outcome.err
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    loss, count = loss_by_hand(trained / "model", TEXT, 32)  # the model's context is what it was trained with
    assert numbers["loss"] == pytest.approx(loss, rel=1e-6)
    assert numbers["tokens"] == count
    assert numbers["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    # Bytes as tokens, and one more that ends the document: bits per byte = loss / ln 2 · tokens / bytes.
    size = len(TEXT.encode())
    assert numbers["bits_per_byte"] == pytest.approx(loss / math.log(2) * (size + 1) / size, rel=1e-6)
    buckets = [(bucket["first"], bucket["last"]) for bucket in numbers["by_position"]]
    assert buckets == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    total = sum(bucket["loss"] * (bucket["last"] - bucket["first"] + 1) for bucket in numbers["by_position"])
    assert total / 31 == pytest.approx(loss, rel=1e-6)
    assert numbers["data"]["validation_bytes"] == size
    assert numbers["machine"]["device"] == "cpu"
    lines = outcome.out.splitlines()
    assert any(line.split() == ["loss", f"{loss:.4f}"] for line in lines)
    assert any(line.split() == ["tokens", f"{count:,}"] for line in lines)
    assert any(line.startswith("16 to 31") for line in lines)


def test_other_lengths_and_fewer_blocks(trained: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = ["--data", text_file, "--seq-len", "64", "--batch-size", "3", "--json", tmp_path / "numbers.json"]
    assert run_main("eval", trained, *arguments).code == 0
    loss, _ = loss_by_hand(trained / "model", TEXT, 64)
    assert json.loads((tmp_path / "numbers.json").read_text())["loss"] == pytest.approx(loss, rel=1e-6)
    assert run_main("eval", trained, *arguments, "--max-blocks", "2").code == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["tokens"] == 2 * 63


def test_the_validation_loss_of_a_run_comes_out_again(flags: list[str], corpus: Path, tmp_path: Path) -> None:
    """What training reports as its final loss is what eval finds on the same documents."""
    from exsel.data import load_data
    from exsel.training.layout import MODEL

    assert run_main("train", *flags, "--lr", "1e-2", "--out", tmp_path / "run").code == 0
    data = load_data([str(corpus)], seq_len=32, validation_blocks=8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / MODEL).double().eval()
    ids = torch.tensor([row["input_ids"].tolist() for row in data.validation])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    loss = float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["loss"] == pytest.approx(loss, rel=1e-6)


def test_any_language_model_in_a_folder(trained: Path, text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=48, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained / "model").save_pretrained(folder)
    outcome = run_main("eval", folder, "--data", text_file, "--json", tmp_path / "numbers.json")
    assert outcome.code == 0, outcome.err
    loss, _ = loss_by_hand(folder, TEXT, 48)
    assert json.loads((tmp_path / "numbers.json").read_text())["loss"] == pytest.approx(loss, rel=1e-6)
    outcome = run_main("eval", folder, "--data", text_file, "--seq-len", "64")
    assert outcome.code == 2
    assert "positions for 48 tokens, not for 64" in outcome.err


def test_isolated_documents(trained: Path, corpus: Path, tmp_path: Path) -> None:
    counts = {}
    for pack in ("concat", "isolate"):
        outcome = run_main("eval", trained, "--data", corpus, "--pack", pack, "--json", tmp_path / pack)
        assert outcome.code == 0, outcome.err
        counts[pack] = json.loads((tmp_path / pack).read_text())["tokens"]
    assert counts["isolate"] < counts["concat"]


def test_a_model_that_predicts_no_number(trained: Path, text_file: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    outcome = run_main("eval", folder, "--data", text_file, "--json", tmp_path / "numbers.json")
    assert outcome.code == 2
    assert "is nan: its weights are of no use" in outcome.err
    assert not (tmp_path / "numbers.json").exists()
