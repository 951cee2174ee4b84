from __future__ import annotations

import io
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from cli.conftest import run_main
from cli.test_mistakes import assert_refused
from exsel.cli.checkpoint import find_checkpoint
from training.small_runs import Watcher


def greedy_by_hand(folder: Path, prompt: str, tokens: int) -> str:
    """The likeliest token after the whole text, again and again, without a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for _ in range(tokens):
            following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
            if int(following) == tokenizer.eos_token_id:
                break
    text: str = tokenizer.decode(ids[0], skip_special_tokens=True)
    return text


def test_greedy_is_the_likeliest_token_every_time(trained: Path) -> None:
    arguments = ["generate", trained, "--prompt", "the quick", "--greedy", "--max-new-tokens", "40", "--past-context"]
    outcome = run_main(*arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("the quick")
    assert outcome.out.rstrip("\n") == greedy_by_hand(trained / "model", "the quick", 40).rstrip("\n")
    assert run_main(*arguments).out == outcome.out


def test_sampling_follows_the_seed(trained: Path) -> None:
    def sample(*arguments: str) -> str:
        outcome = run_main("generate", trained, "--prompt", "the ", "--max-new-tokens", "28", *arguments)
        assert outcome.code == 0, outcome.err
        return outcome.out

    assert sample("--seed", "1") == sample("--seed", "1") != sample("--seed", "2")
    greedy = sample("--greedy")
    assert sample("--temperature", "1e-4") == greedy
    assert sample("--top-p", "1e-6") == greedy


def test_the_prompt_from_standard_input(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the lazy"))
    outcome = run_main("generate", trained, "--prompt", "-", "--greedy", "--max-new-tokens", "5")
    assert outcome.out.startswith("the lazy")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run_main("generate", trained, "--prompt", "-").code == 2


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_or_its_model(trained: Path, part: str) -> None:
    outcome = run_main("generate", trained / part, "--prompt", "x", "--greedy", "--max-new-tokens", "3")
    assert outcome.code == 0


def test_a_run_that_is_not_finished_has_its_last_checkpoint(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(after=10, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr("exsel.cli.display.make_progress", lambda: watcher)
        assert run_main("train", *flags, "--out", tmp_path / "run").code == 143
    # Of 8 and 11, which as text would sort the other way round.
    assert find_checkpoint(str(tmp_path / "run")) == str(tmp_path / "run" / "checkpoint-11")
    outcome = run_main("generate", tmp_path / "run", "--prompt", "x", "--greedy", "--max-new-tokens", "3")
    assert outcome.code == 0, outcome.err


def test_beyond_learned_positions_is_refused_and_beyond_rotary_ones_only_unless_asked_for(
    trained: Path, tmp_path: Path
) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(trained / "model").save_pretrained(tmp_path)
    outcome = run_main("generate", tmp_path, "--prompt", "x" * 10, "--max-new-tokens", "23")
    assert outcome.code == 2
    assert outcome.err == "exsel: this model has positions for 32 tokens, not for 33: ask for fewer\n"
    assert run_main("generate", tmp_path, "--prompt", "x" * 10, "--max-new-tokens", "22").code == 0
    arguments = ["generate", trained, "--prompt", "x" * 40, "--max-new-tokens", "5"]
    outcome = run_main(*arguments)
    assert outcome.code == 2
    assert "this model was made for 32 tokens, not for 45: ask for fewer, or add --past-context" in outcome.err
    assert run_main(*arguments, "--past-context").code == 0


def test_without_a_number_it_writes_as_much_as_the_context_holds(trained: Path) -> None:
    outcome = run_main("generate", trained, "--prompt", "the quick brown fox jumps over", "--greedy")
    assert outcome.code == 0, outcome.err
    outcome = run_main("generate", trained, "--prompt", "x" * 32, "--greedy")
    assert outcome.code == 2
    assert "this model was made for 32 tokens, not for 33" in outcome.err


def test_a_prompt_that_is_not_text(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(run_main("generate", trained, "--prompt", "caf\udce9"), "--prompt is not UTF-8 text")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert_refused(run_main("generate", trained, "--prompt", "-"), "--prompt is not UTF-8 text")


def test_weights_that_give_no_numbers(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for flag in ([], ["--greedy"]):
        outcome = run_main("generate", folder, "--prompt", "x", *flag)
        assert_refused(outcome, "it gives logits that are no numbers: its weights are of no use")
