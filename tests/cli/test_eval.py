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
    arguments = [
        "--data",
        text_file,
        "--seq-len",
        "64",
        "--past-context",
        "--batch-size",
        "3",
        "--json",
        tmp_path / "numbers.json",
    ]
    assert run_main("eval", trained, *arguments).code == 0
    loss, _ = loss_by_hand(trained / "model", TEXT, 64)
    assert json.loads((tmp_path / "numbers.json").read_text())["loss"] == pytest.approx(loss, rel=1e-6)
    assert run_main("eval", trained, *arguments, "--max-sequences", "2").code == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["tokens"] == 2 * 63


def test_the_validation_loss_of_a_run_comes_out_again(flags: list[str], corpus: Path, tmp_path: Path) -> None:
    """What training reports as its final loss is what eval finds on the same documents."""
    from exsel.data import load_data
    from exsel.training.output_folder import MODEL

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


class TestPasskey:
    def test_table_json_and_picture(self, trained: Path, tmp_path: Path) -> None:
        flags = ["--passkey", "110,128", "--depths", "0,0.5,1", "--samples", "2", "--seed", "3", "--past-context"]
        files = ["--json", tmp_path / "numbers.json", "--picture", tmp_path / "passkey.svg"]
        outcome = run_main("eval", trained, *flags, *files)
        assert outcome.code == 0, outcome.err
        numbers = json.loads((tmp_path / "numbers.json").read_text())
        assert numbers["passkey"]["lengths"] == [110, 128]
        assert numbers["passkey"]["depths"] == [0.0, 0.5, 1.0]
        assert (numbers["passkey"]["samples"], numbers["passkey"]["seed"]) == (2, 3)
        assert "loss" not in numbers
        lines = [line.split() for line in outcome.out.splitlines()]
        assert ["Length", "Depth", "0", "Depth", "0.5", "Depth", "1", "All"] in lines
        for length, row, mean in zip(
            ("110", "128"), numbers["passkey"]["accuracy"], numbers["passkey"]["by_length"], strict=True
        ):
            assert [length, *(f"{share:.1%}" for share in (*row, mean))] in lines
        assert (tmp_path / "passkey.svg").read_text().startswith("<svg")

    def test_beside_the_loss(self, trained: Path, text_file: Path, tmp_path: Path) -> None:
        flags = ["--passkey", "110", "--samples", "1", "--data", text_file, "--json", tmp_path / "numbers.json"]
        assert run_main("eval", trained, *flags, "--past-context").code == 0
        numbers = json.loads((tmp_path / "numbers.json").read_text())
        assert numbers["loss"] > 0
        assert numbers["passkey"]["samples"] == 1

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--passkey", "50", "--past-context"], "a length of 50 tokens is too short for a passkey"),
            (["--passkey", "128,x"], "--passkey: not a whole number: 'x'"),
            (["--passkey", ""], "--passkey: not a whole number: ''"),
            (["--passkey", "99999"], "this model was made for 32 tokens, not for 99999: ask for fewer, or add --past-"),
            (["--seq-len", "33"], "this model was made for 32 tokens, not for 33"),
            (["--passkey", "128", "--past-context", "--depths", "2"], "a passkey depth lies between 0"),
            (["--passkey", "128", "--depths", ";"], "--depths: not a number: ';'"),
            (["--passkey", "128", "--samples", "0"], "--samples must lie between 1 and 90000, got 0"),
            (["--passkey", "128", "--seed", "-1"], "--seed must lie between 0 and 4294967295, got -1"),
            (["--passkey", "128", "--picture", "a.gif"], "--picture a.gif: its name must end with .svg or .png"),
            (["--passkey", "128", "--picture", "no/such/a.svg"], "--picture no/such/a.svg cannot be written"),
            (["--depths", "0.5"], "--depths belongs to --passkey, which is not given"),
            (["--limit", "5"], "--limit belongs to --tasks, which is not given"),
        ],
    )
    def test_mistakes(self, trained: Path, given: list[str], message: str) -> None:
        outcome = run_main("eval", trained, *given)
        assert outcome.code == 2
        assert message in outcome.err


class TestTasks:
    @pytest.fixture
    def task_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        pytest.importorskip("lm_eval")
        import datasets

        from evaluation.test_tasks import write_tasks

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        (tmp_path / "tasks").mkdir()
        return write_tasks(tmp_path / "tasks")

    def test_table_and_json(self, trained: Path, task_folder: Path, tmp_path: Path) -> None:
        flags = ["--tasks", "local_choices,local_rolling", "--task-path", task_folder, "--limit", "3"]
        outcome = run_main("eval", trained, *flags, "--json", tmp_path / "numbers.json")
        assert outcome.code == 0, outcome.err
        found = json.loads((tmp_path / "numbers.json").read_text())["tasks"]
        assert [(score["task"], score["metric"]) for score in found["scores"]] == [
            ("local_choices", "acc"),
            ("local_choices", "acc_norm"),
            ("local_rolling", "bits_per_byte"),
        ]
        lines = [line.split() for line in outcome.out.splitlines()]
        for score in found["scores"]:
            stderr = "–" if score["stderr"] is None else f"{score['stderr']:.4f}"
            assert [score["task"], score["metric"], f"{score['value']:.4f}", stderr, "3", "0"] in lines

    def test_the_mean_of_a_set(
        self, trained: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = {"tiny-paper": {"local_choices": ("acc_norm",), "local_last_word": ("acc",)}}
        monkeypatch.setattr("exsel.evaluation.tasks.TASK_SETS", own)
        flags = ["--tasks", "tiny-paper", "--task-path", task_folder, "--json", tmp_path / "numbers.json"]
        outcome = run_main("eval", trained, *flags)
        assert outcome.code == 0, outcome.err
        found = json.loads((tmp_path / "numbers.json").read_text())["tasks"]
        mean = sum(score["value"] for score in found["scores"]) / 2
        assert found["means"] == {"tiny-paper": pytest.approx(mean)}
        assert any(line.split()[:3] == ["tiny-paper", "mean", f"{mean:.4f}"] for line in outcome.out.splitlines())

    def test_what_was_cut_is_said(self, trained: Path, task_folder: Path) -> None:
        """The model's context of 32 bytes holds a question and its answer, but not with three examples before it."""
        flags = ["--tasks", "local_last_word", "--task-path", task_folder, "--num-fewshot", "3"]
        outcome = run_main("eval", trained, *flags)
        assert outcome.code == 0, outcome.err
        assert "4 of 4 requests are longer than the model's context: their beginnings were cut off" in outcome.err

    def test_an_unknown_task_is_refused_before_the_model_is_loaded(
        self, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lm_eval.tasks import TaskManager

        monkeypatch.setattr(
            "exsel.evaluation.tasks.TaskManager",
            lambda include_path, include_defaults=False: TaskManager(include_path=include_path, include_defaults=False),
        )
        (tmp_path / "config.json").write_text('{"model_type": "exsel"}')  # a model without weights does not load
        outcome = run_main("eval", tmp_path, "--tasks", "local_choises", "--task-path", task_folder)
        assert outcome.code == 2
        assert "no task is called 'local_choises'" in outcome.err
        assert "did you mean local_choices" in outcome.err

    def test_without_the_extra(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "lm_eval", None)
        outcome = run_main("eval", trained, "--tasks", "piqa")
        assert outcome.code == 2
        assert "lm_eval is not installed: pip install 'exsel[eval]'" in outcome.err

    def test_help_names_the_sets(self) -> None:
        pytest.importorskip("lm_eval")
        from exsel.evaluation.tasks import TASK_SETS

        assert ", ".join(TASK_SETS) in " ".join(run_main("eval", "--help").out.split())
