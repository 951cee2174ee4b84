from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from evaluation.test_loss import small_model
from exsel.data import load_tokenizer
from exsel.data.passkey import fit_documents
from exsel.errors import ExselError
from exsel.evaluation import PasskeyResult, passkey
from exsel.evaluation.passkey_picture import write_passkey_picture
from exsel.evaluation.retrieval import _answer, _Question, _questions

BYTES = load_tokenizer("bytes")
FACT = re.compile(r"The pass key is (\d{5})\. Remember")


class Reader(torch.nn.Module):
    """Reads the text and answers right, as far as it is allowed to look back or up to a number of right digits."""

    config = GPT2Config(n_positions=4096)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, sight: int = 10**9, digits: int = 5) -> None:
        super().__init__()
        self.tokenizer, self.sight, self.digits = tokenizer, sight, digits
        self.positions = torch.nn.Embedding(self.config.n_positions, 1)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> CausalLMOutput:
        self.batches.append(tuple(input_ids.shape))
        logits = torch.zeros(*input_ids.shape, 300)
        for row, ids in enumerate(input_ids.tolist()):
            size = len(ids) if attention_mask is None else int(attention_mask[row].sum())
            text = self.tokenizer.decode(ids[:size])
            prompt = text[: text.rindex("The pass key is") + len("The pass key is")]
            match = FACT.search(text)
            assert match is not None
            key = match[1] if len(text) - match.start() <= self.sight else "00000"
            key = key[: self.digits] + "0" * (5 - self.digits)
            answer = self.tokenizer(f" {key}", add_special_tokens=False)["input_ids"]
            start = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]) - 1
            for offset, token in enumerate(answer):
                if start + offset < len(ids):
                    logits[row, start + offset, token] = 1
        return CausalLMOutput(logits=logits)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return BYTES if request.param == "bytes" else load_tokenizer(str(request.getfixturevalue("bpe_file")))


def test_one_that_reads_finds_every_key(tokenizer: PreTrainedTokenizerBase) -> None:
    model = Reader(tokenizer)
    seen: list[tuple[int, int]] = []
    result = passkey(
        model,
        tokenizer,
        lengths=[140, 220],
        depths=[0.0, 1.0],
        samples=3,
        batch_size=5,
        on_batch=lambda done, total: seen.append((done, total)),
    )
    assert result.correct == ((3, 3), (3, 3))
    assert result.mean == 1.0
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert [batch for batch, _ in model.batches] == [5, 5, 2]


def test_one_that_sees_the_end_finds_the_keys_there() -> None:
    result = passkey(Reader(BYTES, sight=120), BYTES, lengths=[110, 300], depths=[0.0, 0.5, 1.0], samples=2)
    assert result.correct == ((2, 2, 2), (0, 0, 2))
    assert result.accuracy == ((1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    assert result.by_length == pytest.approx((1.0, 1 / 3))
    assert result.by_depth == (0.5, 0.5, 1.0)
    assert result.mean == pytest.approx(2 / 3)


def test_four_digits_are_not_five() -> None:
    chance = passkey(Reader(BYTES, digits=4), BYTES, lengths=[128], depths=[0.5], samples=40).mean
    assert chance < 0.5  # those keys that end with 0


@pytest.mark.parametrize("kind", ["exsel", "gpt2"])
def test_equals_greedy_generation(kind: str) -> None:
    """What one pass tells is what generate writes: both ways, for keys that the model writes and others."""
    model: Any
    if kind == "exsel":
        model = small_model().eval()
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=256, n_embd=16, n_layer=1, n_head=2)).eval()
    prompts = [question.prompt for question in _questions(BYTES, [128, 150], [0.0, 1.0], 2, seed=0)]
    written = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        written.append([*out[0, len(prompt) :].tolist(), *[0] * 6][:6])
    right = [_Question((0, 0), prompt, answer) for prompt, answer in zip(prompts, written, strict=True)]
    assert _answer(model, right) == [True] * len(right)
    for place in range(6):
        wrong = [
            _Question((0, 0), item.prompt, [*item.answer[:place], 200 + (item.answer[place] == 200)]) for item in right
        ]
        assert _answer(model, wrong) == [False] * len(wrong)


def test_documents_have_the_length_of_training_data() -> None:
    for question in _questions(BYTES, [128, 300], [0.0, 0.7], 2, seed=0):
        assert len(question.prompt + question.answer) + 1 == (128, 300)[question.cell[0]]
    (document,) = fit_documents([("12345", 0.5)], BYTES, 200)
    assert len(document.text) == 199


def test_the_seed_decides_and_lengths_do_not_disturb_each_other() -> None:
    def keys(lengths: list[int], seed: int) -> list[str]:
        return [
            BYTES.decode(item.answer) for item in _questions(BYTES, lengths, [0.0, 1.0], 3, seed) if item.cell[0] == 0
        ]

    assert keys([200], 0) == keys([200, 128], 0)
    assert keys([200], 0) != keys([200], 1)
    assert len(set(keys([200], 0))) == 6


def test_leaves_the_model_as_it_was() -> None:
    model = small_model().train()
    passkey(model, BYTES, lengths=[128], depths=[0.5], samples=1)
    assert model.training
    with pytest.raises(RuntimeError, match="stopped"):
        passkey(model, BYTES, lengths=[128], depths=[0.5], samples=1, on_batch=_stop)
    assert model.training


def _stop(done: int, total: int) -> None:
    raise RuntimeError("stopped")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [64]}, "a length of 64 tokens is too short for a passkey"),
        ({"lengths": [128, 8192]}, "this model has positions for 4096 tokens, not for 8192"),
        ({"lengths": []}, "passkey lengths must be given, each once, got []"),
        ({"lengths": [128, 128]}, "passkey lengths must be given, each once"),
        ({"depths": [0.0, 1.5]}, "a passkey depth lies between 0 (before the text) and 1 (after it), got 1.5"),
        ({"depths": [float("nan")]}, "got nan"),
        ({"samples": 0}, "must be at least 1, got 0 and 8"),
        ({"batch_size": 0}, "must be at least 1, got 20 and 0"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExselError, match=re.escape(message)):
        passkey(Reader(BYTES), BYTES, **{"lengths": [128], **changes})


def test_rotary_positions_go_on() -> None:
    assert passkey(small_model(), BYTES, lengths=[4096], depths=[0.5], samples=1).lengths == (4096,)


RESULT = PasskeyResult(
    lengths=(128, 1024), depths=(0.0, 0.5, 1.0), samples=20, seed=3, correct=((20, 19, 20), (0, 11, 18))
)


def test_as_json() -> None:
    values = json.loads(json.dumps(RESULT.to_dict()))
    assert values["accuracy"] == [[1.0, 0.95, 1.0], [0.0, 0.55, 0.9]]
    assert values["correct"] == [[20, 19, 20], [0, 11, 18]]
    assert (values["lengths"], values["depths"], values["samples"], values["seed"]) == (
        [128, 1024],
        [0.0, 0.5, 1.0],
        20,
        3,
    )
    assert values["mean"] == pytest.approx((59 + 29) / 120)


class TestPicture:
    def test_svg(self, tmp_path: Path) -> None:
        write_passkey_picture(RESULT, tmp_path / "passkey.svg")
        root = ElementTree.fromstring((tmp_path / "passkey.svg").read_text())
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        assert {"100%", "95%", "0%", "55%", "90%", "128", "1,024", "depth of the key"} <= set(texts)
        assert not re.search(r"#0[0-9]000[0-9]", ElementTree.tostring(root, encoding="unicode"))  # stand-ins
        assert "prefers-color-scheme: dark" in (tmp_path / "passkey.svg").read_text()

    def test_png_is_fuller_where_more_was_found(self, tmp_path: Path) -> None:
        from matplotlib.image import imread

        means = []
        for found in (0, 10, 20):
            result = PasskeyResult(lengths=(128,), depths=(0.0,), samples=20, seed=0, correct=((found,),))
            write_passkey_picture(result, tmp_path / "a.png")
            means.append(float(imread(tmp_path / "a.png")[..., 0].mean()))  # red: the fields are blue
        assert means[0] > means[1] > means[2]
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_model_that_predicts_no_number() -> None:
    model = small_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ExselError, match="its weights are of no use"):
        passkey(model, BYTES, lengths=[128], depths=[0.5], samples=1)
