from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)

import exsel
from cli.conftest import run_main
from cli.test_mistakes import assert_refused
from exsel.diagnostics.diagnosis_report import diagnosis_folder

TEXT = "the quick brown fox jumps over the lazy dog, höher. " * 8


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and have tests of their own."""
    monkeypatch.setattr("exsel.diagnostics.diagnosis_report.figures_by_section", lambda models: {})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    size = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=48, n_embd=16, n_layer=2, n_head=2, **ends))
    llama = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=16, max_position_embeddings=64))
    bert = BertForMaskedLM(BertConfig(**size, intermediate_size=16, max_position_embeddings=48))
    upgraded = exsel.upgrade(LlamaForCausalLM(llama.config), exclusive=True, selective=True)
    for name, model in {"gpt2": gpt2, "llama": llama, "bert": bert, "upgraded": upgraded}.items():
        model.save_pretrained(folder / name)
        ByT5Tokenizer(extra_ids=0).save_pretrained(folder / name)
    return folder


def diagnosed(folder: Path, name: str = diagnosis_folder.RESULTS) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / name).read_text())
    return values


def test_a_run_is_diagnosed_on_files(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    out = tmp_path / "out"
    outcome = run_main("diagnose", trained, "--data", text, "--max-sequences", "3", "--out", out)
    assert outcome.code == 0, outcome.err
    found = diagnosed(out)
    assert found["model"]["name"] == str(trained)
    assert found["data"] == {"description": str(text), "sequences": 3, "tokens": 96, "longest": 32}
    assert found["machine"]["device"] == "cpu"
    arguments = ["diagnose", str(trained), "--data", str(text), "--max-sequences", "3", "--out", str(out)]
    assert shlex.split(found["command"])[-len(arguments) :] == arguments
    assert len(found["layers"]) == 2
    lines = [line.split() for line in outcome.out.splitlines()]
    assert any(line[:5] == ["Layer", "cos(y,", "v)", "cos(z,", "v)"] for line in lines)
    for layer in found["layers"]:
        own = next(line for line in lines if line[:1] == [str(layer["layer"])])
        assert float(own[1].replace("−", "-")) == pytest.approx(layer["metrics"]["similarity"]["mean"], abs=6e-3)
    written = [diagnosis_folder.REPORT, diagnosis_folder.TOKENS, diagnosis_folder.RESULTS, diagnosis_folder.FIGURES]
    assert outcome.out.splitlines()[-3:] == [str(out / name) for name in written[:3]]
    assert "Attention's output" in outcome.out


def test_the_text_of_the_pictures_is_the_text_that_was_given(models: Path, tmp_path: Path) -> None:
    outcome = run_main("diagnose", models / "llama", "--text", "def f(x):\n", "again", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = diagnosed(tmp_path / "out")
    assert "".join(found["pictures"][0]["tokens"]) == "def f(x):\n</s>"
    assert found["data"]["sequences"] == 2
    assert found["data"]["description"] == "text of the command line"


def test_a_text_longer_than_the_context_is_cut_and_that_is_said(models: Path, tmp_path: Path) -> None:
    arguments = ["--text", TEXT, "--max-sequences", "4", "--batch-size", "3"]
    outcome = run_main("diagnose", models / "gpt2", *arguments, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = diagnosed(tmp_path / "out")
    assert (found["data"]["sequences"], found["data"]["longest"]) == (4, 48)
    assert "the text was cut into sequences of 48 tokens at most" in outcome.err
    assert "of 9 sequences the first 4 were read (--max-sequences)" in outcome.err
    assert set(found["notes"]) == {
        "the text was cut into sequences of 48 tokens at most",
        "of 9 sequences the first 4 were read (--max-sequences)",
    }


def test_an_encoder_on_files(models: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    outcome = run_main("diagnose", models / "bert", "--data", tmp_path / "text.txt", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    layers = diagnosed(tmp_path / "out")["layers"]
    assert [layer["is_causal"] for layer in layers] == [False, False]


def test_one_model_against_another(models: Path, tmp_path: Path) -> None:
    arguments = ["--against", models / "llama", "--text", "one text for both", "--out", tmp_path / "out"]
    outcome = run_main("diagnose", models / "upgraded", *arguments)
    assert outcome.code == 0, outcome.err
    ours, theirs = diagnosed(tmp_path / "out"), diagnosed(tmp_path / "out", diagnosis_folder.AGAINST)
    assert ours["layers"][0]["strength"] == [1.0, 1.0]
    assert theirs["layers"][0]["strength"] is None
    assert ours["pictures"][0]["tokens"] == theirs["pictures"][0]["tokens"]
    assert "Attention passes on" in outcome.out
    assert str(models / "llama") in outcome.out


def test_both_models_read_sequences_that_suit_either(models: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["--against", models / "gpt2", "--data", tmp_path / "text.txt", "--out", tmp_path / "out"]
    assert run_main("diagnose", models / "llama", *arguments).code == 0
    ours, theirs = diagnosed(tmp_path / "out"), diagnosed(tmp_path / "out", diagnosis_folder.AGAINST)
    assert ours["data"] == theirs["data"]
    assert ours["data"]["longest"] == 48  # of the contexts 64 and 48
    assert ours["pictures"][0]["tokens"] == theirs["pictures"][0]["tokens"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_on_its_model(models: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import exsel.peft

    base = LlamaForCausalLM.from_pretrained(models / "llama")
    model = peft.get_peft_model(base, exsel.peft.SelectiveAdapterConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    outcome = run_main("diagnose", tmp_path / "adapter", "--text", "some text", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "query_temperature" in diagnosed(tmp_path / "out")["layers"][0]["metrics"]


def test_bfloat16(models: Path, tmp_path: Path) -> None:
    arguments = ["--text", "some text", "--dtype", "bfloat16", "--out", tmp_path / "out"]
    assert run_main("diagnose", models / "llama", *arguments).code == 0


def test_only_a_diagnosis_is_replaced(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["diagnose", models / "llama", "--text", "some text", "--out", out]
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert_refused(run_main(*arguments), f"--out {out} holds files that `exsel diagnose` did not write")
    assert_refused(run_main(*arguments, "--overwrite"), "holds files that `exsel diagnose` did not write")
    (out / "mine.txt").unlink()
    assert run_main(*arguments).code == 0
    first = (out / diagnosis_folder.RESULTS).read_text()
    assert_refused(run_main(*arguments), "is not empty: add --overwrite to replace it")
    assert (out / diagnosis_folder.RESULTS).read_text() == first
    assert run_main(*arguments, "--overwrite").code == 0


def test_a_run_is_never_replaced(models: Path, trained: Path) -> None:
    outcome = run_main("diagnose", models / "llama", "--text", "x", "--out", trained, "--overwrite")
    assert_refused(outcome, "holds files that `exsel diagnose` did not write")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seq-len", "1"], "--seq-len must be at least 2, got 1"),
        (["--max-sequences", "0"], "--max-sequences must be at least 1, got 0"),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
        (["--text", ""], "--text is empty"),
        (["--text", "good", " \n"], "--text is empty"),
        (["--text", "x", "--data", "y"], "give one of them"),
        (["--data", "/no/such/file"], "no such file or folder: /no/such/file"),
        (["--device", "gpu"], "--device gpu: choose auto"),
        (["--text", "x" * 90, "--seq-len", "80"], "this model was made for 48 tokens, not for 80"),
        (["--text", "x" * 90, "--seq-len", "80", "--past-context"], "positions for 48 tokens, not for 80"),
    ],
)
def test_mistakes(models: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    outcome = run_main("diagnose", models / "gpt2", *arguments, "--out", tmp_path / "out")
    assert_refused(outcome, message)
    assert not (tmp_path / "out").exists()


def damaged(models: Path, folder: Path, name: str) -> Path:
    shutil.copytree(models / "llama", folder)
    weights = load_file(folder / "model.safetensors")
    if name == "pickle":
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif name == "nan":
        weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
    elif name == "incomplete":
        del weights["model.layers.1.self_attn.q_proj.weight"]
    elif name == "other tokenizer":
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:50]
        weights["lm_head.weight"] = weights["lm_head.weight"][:50]
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    if name != "pickle":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("pickle", ["pickle files alone"]),
        ("nan", ["cannot be diagnosed", "model.layers.1.self_attn"]),
        ("incomplete", ["it lacks 1 weights, such as model.layers.1.self_attn.q_proj.weight"]),
        ("other tokenizer", ["only 50 embeddings: they do not belong together"]),
    ],
)
def test_models_of_no_use(models: Path, tmp_path: Path, name: str, fragments: list[str]) -> None:
    folder = damaged(models, tmp_path / "model", name)
    outcome = run_main("diagnose", folder, "--text", TEXT, "--out", tmp_path / "out")
    assert_refused(outcome, *fragments)
    assert not (tmp_path / "out").exists()


def test_a_missing_folder(tmp_path: Path) -> None:
    assert_refused(run_main("diagnose", tmp_path / "none", "--text", "x", "--out", tmp_path / "out"), "no such folder")
    assert_refused(run_main("diagnose", tmp_path, "--text", "x", "--out", tmp_path / "out"), "holds no saved model")


def test_a_name_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exsel.hub_access.reason_unavailable", lambda name, kind: "no connection")
    outcome = run_main("diagnose", "nobody/no-such-model", "--text", "x", "--out", tmp_path / "out")
    assert_refused(outcome, "nobody/no-such-model: neither a folder with a saved model nor one on the hub")


def test_a_model_of_images_is_sent_to_python(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    outcome = run_main("diagnose", tmp_path / "vit", "--text", "x", "--out", tmp_path / "out")
    assert_refused(outcome, "its tokenizer is damaged or missing", "exsel.diagnose(model, batches) in Python")


def test_the_saved_tokenizer_reads_the_text(models: Path) -> None:
    # What the other tests take for granted.
    assert AutoTokenizer.from_pretrained(models / "llama")("é")["input_ids"] == [198, 172, 1]
