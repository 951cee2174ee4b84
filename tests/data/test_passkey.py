from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exsel.data import load_data, load_evaluation_data, load_tokenizer
from exsel.data.packing import collate
from exsel.data.passkey import COUNT, PasskeyDocument, fit_documents, passkey_documents, write_document
from exsel.errors import ExselError

BYTES = load_tokenizer("bytes")
DOCUMENT = re.compile(
    r"(?P<before>.*)The pass key is (\d{5})\. Remember it\. \2 is the pass key\. (?P<after>.*)"
    r"What is the pass key\? The pass key is \2"
)


def parts(document: PasskeyDocument) -> tuple[str, str]:
    match = DOCUMENT.fullmatch(document.text)
    assert match is not None, document.text
    return match["before"], match["after"]


class TestDocument:
    @pytest.mark.parametrize("filler", [0, 1, 19, 20, 21, 500])
    @pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
    def test_the_filler_is_the_end_of_an_endless_one(self, filler: int, depth: float) -> None:
        document = write_document("12345", depth, filler)
        before, after = parts(document)
        endless = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. " * 20
        assert before + after == endless[len(endless) - filler :]
        assert not before or before.endswith(" ")
        assert document.answer == " 12345"

    def test_the_depth_is_where_the_key_stands(self) -> None:
        shares = []
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
            before, after = parts(write_document("12345", depth, 2000))
            shares.append(len(before) / len(before + after))
        assert shares == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=0.02)
        assert parts(write_document("12345", 1.0, 2000))[1] == ""


class TestLength:
    @pytest.mark.parametrize("length", [104, 105, 128, 257])
    def test_bytes_fit_exactly(self, length: int) -> None:
        for document in fit_documents([("12345", 0.0), ("99999", 0.4), ("10000", 1.0)], BYTES, length):
            assert len(document.text.encode()) + 1 == length

    def test_another_tokenizer_counts_its_own_tokens(self, bpe_file: Path) -> None:
        tokenizer = load_tokenizer(str(bpe_file))
        wanted = [(str(10_007 * index), index / 9) for index in range(1, 10)]
        documents = fit_documents(wanted, tokenizer, 300)
        counts = [len(tokenizer(document.text, add_special_tokens=False)["input_ids"]) + 1 for document in documents]
        assert max(counts) == 300
        assert min(counts) >= 298
        assert [document.answer for document in documents] == [f" {key}" for key, _ in wanted]

    def test_too_short_says_how_long_it_must_be(self) -> None:
        with pytest.raises(ExselError, match="a length of 64 tokens is too short for a passkey") as caught:
            fit_documents([("12345", 0.5)], BYTES, 64)
        least = int(re.findall(r"take (\d+) with", str(caught.value))[0])
        assert len(fit_documents([("12345", 0.5)], BYTES, least)[0].text) == least - 1
        with pytest.raises(ExselError, match="too short"):
            fit_documents([("12345", 0.5)], BYTES, least - 1)

    def test_a_tokenizer_without_digits(self) -> None:
        words = Tokenizer(models.WordLevel({"<unk>": 0, "The": 1, "key": 2, "</s>": 3}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
        with pytest.raises(ExselError, match="this tokenizer cannot write the digits of a passkey"):
            fit_documents([("12345", 0.5)], tokenizer, 200)


class TestSource:
    def test_each_block_is_a_document(self) -> None:
        data = load_data("passkey:count=300", seq_len=128)
        assert len(data.train) + len(data.validation) == 300
        assert len(data.validation) >= 3
        for side in (data.train, data.validation):
            for row in side:
                assert row["input_ids"][-1] == BYTES.eos_token_id
                assert DOCUMENT.fullmatch(BYTES.decode(row["input_ids"][:-1]))
        assert data.description.name == "passkey:count=300"

    def test_two_documents_a_block(self) -> None:
        data = load_data("passkey:length=128,count=100", seq_len=256, pack="isolate")
        batch = collate([data.train[0]])
        assert (batch["position_ids"][0] == 0).nonzero().flatten().tolist() == [0, 128]

    def test_the_seed_decides(self) -> None:
        first, second, other = (passkey_documents(f"passkey:seed={seed}", BYTES, 256) for seed in (1, 1, 2))
        assert first == second
        assert len(set(first) & set(other)) < 50  # a few by chance
        assert len(first) == COUNT
        places = Counter(round(text.index("The pass key is") / 150, 1) for text in first)
        assert len(places) > 3

    def test_beside_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("the quick brown fox\n" * 100)
        mixed = ["passkey:length=128,count=50", str(tmp_path / "a.txt"), "passkey:length=200,count=30,seed=1"]
        blocks, description = load_evaluation_data(mixed, tokenizer=BYTES, seq_len=256)
        assert description.validation_tokens == 2001 + 50 * 128 + 30 * 200
        assert BYTES.decode(blocks[0]["input_ids"]).startswith("the quick brown fox")

    def test_a_file_of_that_name_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("passkey").write_text("no key in here\n" * 30)
        _, description = load_evaluation_data("passkey", tokenizer=BYTES, seq_len=64)
        assert description.validation_bytes == 450

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("passkey:lenght=3", "'lenght=3' is not understood; give each of length, count, seed once at most"),
            ("passkey:length=x", "'length=x' is not understood"),
            ("passkey:length=-5", "'length=-5' is not understood"),
            ("passkey:256", "'256' is not understood"),
            ("passkey:count=0", "count must be at least 1"),
            ("passkey:count=1,count=2", "'count=2' is not understood"),
            ("passkey:length=32", "a length of 32 tokens is too short"),
            ("passkey:length=129", "sequences of 128 tokens cut documents of 129, and the key from its question"),
            ("passkey:length=10000000", "sequences of 128 tokens cut documents of 10000000"),
            ("passkey:count=10000000", "10,000,000 documents of 128 tokens are more than 268,435,456"),
            (f"passkey:seed={'9' * 100}", "is not understood"),
        ],
    )
    def test_mistakes(self, spec: str, message: str) -> None:
        with pytest.raises(ExselError, match=re.escape(message)):
            load_data(spec, seq_len=128)
