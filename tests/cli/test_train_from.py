"""Fine-tuning, from a folder to a sentence, and what contradicts itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import run_main
from cli.test_mistakes import assert_refused, contents
from training.small_sources import write_source


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("sources") / "llama", "llama")


@pytest.fixture
def short(corpus: Path) -> list[str]:
    """4 steps of 4 sequences of 32 bytes."""
    return [
        *("--data", str(corpus), "--seq-len", "32", "--batch-size", "4", "--tokens", "512", "--no-compile"),
        *("--evaluations", "2", "--evaluation-blocks", "8", "--device", "cpu", "--lr", "1e-3"),
    ]


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_a_transformers_model_and_on_from_there(short: list[str], llama: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    variant = ["--variant", "exclusive+selective", "--exclusive", "strength=learned"]
    outcome = run_main("train", "--from", llama, *variant, *short, "--out", first)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert f"model: {llama}, 4 steps" in outcome.out
    # The run's folder names its model, and without --variant it stays what it is.
    outcome = run_main("train", "--from", first, *short, "--train", "new", "--out", second)
    assert outcome.code == 0, outcome.err
    result = result_of(second)
    assert result["variant"] == "exclusive+selective"
    assert result["trained_parameters"] == result["new_parameters"] < result["parameters"]
    assert f"; {result['new_parameters']:,} trained" in outcome.out
    data = short[short.index("--data") + 1]
    evaluated = run_main("eval", second, "--data", data, "--seq-len", "32", "--json", tmp_path / "eval.json")
    assert evaluated.code == 0, evaluated.err
    generated = run_main("generate", second, "--prompt", "the", "--max-new-tokens", "4")
    assert generated.code == 0, generated.err
    assert generated.out.startswith("the")


def test_a_run_of_our_own_and_passkeys(short: list[str], flags: list[str], tmp_path: Path) -> None:
    assert run_main("train", *flags, "--seq-len", "128", "--tokens", "2048", "--out", tmp_path / "plain").code == 0
    data = ["--data", short[1], "passkey:length=128,count=40"]
    arguments = ["--from", tmp_path / "plain", "--variant", "selective", *short, *data, "--out", tmp_path / "run"]
    outcome = run_main("train", *arguments, "--seq-len", "128", "--tokens", "2048")
    assert outcome.code == 0, outcome.err
    assert "passkey:length=128,count=40" in outcome.out
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["model_type"] == "exsel"
    assert config["selective"] is not None
    assert run_main("eval", tmp_path / "run", "--passkey", "128", "--samples", "1").code == 0
    # The same again is a run that is finished.
    resumed = run_main("train", *arguments, "--seq-len", "128", "--tokens", "2048", "--resume")
    assert resumed.code == 0, resumed.err
    assert f"validation loss {result_of(tmp_path / 'run')['loss']:.4f}" in resumed.out


def test_what_is_not_said_suits_the_model(llama: Path, corpus: Path, tmp_path: Path) -> None:
    flags = ["--data", corpus, "--tokens", "1024", "--no-compile", "--evaluations", "1", "--evaluation-blocks", "1"]
    outcome = run_main("train", "--from", llama, *flags, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["variant"] == "baseline"
    assert settings["seq_len"] == 64  # the model's context
    assert settings["learning_rate"] == 1e-4
    assert settings["model"] == settings["source"] == settings["tokenizer"] == str(llama)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny"], "--model is of a new model, and --from begins with one that has its own"),
        (["--tokenizer", "bytes"], "--tokenizer is of a new model, and --from begins with one that has its own"),
        (["--train", "new"], "--train new: nothing would train, since --variant baseline"),
        (["--train", "new", "--variant", "exclusive"], "or --exclusive strength=learned"),
        (["--variant", "sparse"], "no variant is called 'sparse'"),
        (["--seq-len", "128", "--tokens", "1024"], "--seq-len 128 is more than the 64 tokens"),
        (["--variant", "exclusive", "--exclusive", "layers=last:9"], "cannot be exclusive: layers='last:9'"),
        (["--variant", "selective", "--selective", "token=frequency"], "token='frequency' needs"),
        (["--from", "/no/such/folder"], "--from /no/such/folder: no such folder"),
        (["--from", ""], "--from is empty"),
    ],
)
def test_mistakes(short: list[str], llama: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    outcome = run_main("train", "--from", llama, *short, *arguments, "--out", tmp_path / "deep" / "out")
    assert_refused(outcome, message)
    assert list(tmp_path.iterdir()) == []


def test_new_parameters_need_from(flags: list[str], tmp_path: Path) -> None:
    assert_refused(run_main("train", *flags, "--train", "new", "--out", tmp_path / "out"), "belongs to --from")
    assert list(tmp_path.iterdir()) == []


def test_an_upgraded_model_keeps_its_mechanisms(short: list[str], trained: Path, tmp_path: Path) -> None:
    begin = ["train", "--from", trained, *short, "--out", tmp_path / "out"]
    assert_refused(run_main(*begin, "--variant", "selective"), "is exclusive+selective already, and cannot become")
    assert_refused(run_main(*begin, "--exclusive", "strength=0.5"), "stays as it is: leave out --exclusive")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_overwritten_by_its_own_fine_tuning(short: list[str], trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    for source in (folder, folder / "model"):
        outcome = run_main("train", "--from", source, *short, "--overwrite", "--out", folder)
        assert_refused(outcome, f"--from {source} lies in --out {folder}")
    assert contents(folder) == before


def test_damaged_weights_are_found_before_anything_is_overwritten(
    short: list[str], llama: Path, trained: Path, tmp_path: Path
) -> None:
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(llama, source)
    shutil.copytree(trained, folder)
    before = contents(folder)
    (source / "model.safetensors").write_bytes(b"cut")
    outcome = run_main("train", "--from", source, *short, "--overwrite", "--out", folder)
    assert_refused(outcome, f"--from {source} cannot be loaded")
    assert contents(folder) == before


def test_help_says_it() -> None:
    text = " ".join(run_main("train", "--help").out.split())
    for words in ("--from MODEL", "--train {all,new}", "passkey[:length=N,count=N,seed=N]"):
        assert words in text


def test_variants_of_an_existing_model_are_compared(short: list[str], llama: Path, tmp_path: Path) -> None:
    begin = ["compare", "--from", llama, *short, "--variants"]
    outcome = run_main(*begin, "baseline,selective", "--out", tmp_path / "all")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    assert results["config"]["source"] == str(llama)
    # Both begin as the same model: before anything is learned, selective attention computes nearly what it did.
    first, second = (run["validation_curve"][0]["loss"] for run in results["runs"])
    assert second == pytest.approx(first, abs=1e-2)
    assert results["model"]["max_position_embeddings"] == 64, "its own, not the length that is trained on"
    assert "llama, trained on, " in (tmp_path / "all" / "report.html").read_text()
    outcome = run_main(*begin, "constant,selective", "--train", "new", "--out", tmp_path / "new")
    assert outcome.code == 0, outcome.err
    for run in json.loads((tmp_path / "new" / "results.json").read_text())["runs"]:
        assert run["trained_parameters"] == run["new_parameters"] > 0
    refused = run_main(*begin, "baseline,selective", "--train", "new", "--out", tmp_path / "none")
    assert_refused(refused, "nothing would train, since --variant baseline")
