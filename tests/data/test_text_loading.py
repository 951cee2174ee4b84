from __future__ import annotations

import dataclasses
import json
import platform
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import IterableDataset

from exsel.data import (
    DataDescription,
    PackedData,
    collate,
    hub,
    load_data,
    load_evaluation_data,
    load_tokenizer,
    text_files,
    text_loading,
)
from exsel.errors import ExselError

from .conftest import WriteRows

SENTENCE = "It was the best of times, it was the worst of times, number {}.\n"


@pytest.fixture(scope="module")
def embedded() -> PackedData:
    return load_data(seq_len=512, validation_blocks=20)


@pytest.fixture
def corpus(tmp_path: Path, write_rows: WriteRows) -> Path:
    """Three hundred documents in rows, and one in a text file."""
    write_rows(tmp_path / "corpus" / "rows.jsonl", [{"text": SENTENCE.format(n)} for n in range(300)])
    (tmp_path / "corpus" / "page.txt").write_text("A page of its own.\n" * 5)
    return tmp_path / "corpus"


def blocks(dataset: object) -> list[list[int]]:
    return [np.asarray(block["input_ids"]).tolist() for block in dataset]  # type: ignore[attr-defined]


def words(dataset: object) -> set[str]:
    """The numbers of the sentences that lie in blocks as a whole."""
    tokenizer = load_tokenizer("bytes")
    text = "".join(tokenizer.decode(block) for block in blocks(dataset))
    return set(re.findall(r"times, number (\d+)\.\n", text))


class TestStandardLibrary:
    def test_the_description_says_what_it_is(self, embedded: PackedData) -> None:
        description = embedded.description
        assert description.name == f"Python {platform.python_version()} standard library"
        assert description.sha256 is not None
        assert re.fullmatch("[0-9a-f]{64}", description.sha256)
        assert (description.tokenizer, description.vocab_size) == ("bytes", 259)
        assert (description.pack, description.seq_len) == ("concat", 512)
        assert description.train_bytes is not None
        assert description.validation_bytes is not None
        assert 0.01 < description.validation_bytes / description.train_bytes < 0.15
        assert description.train_tokens == description.train_bytes + (description.train_documents or 0)
        assert description.validation_tokens is not None
        assert description.validation_tokens == description.validation_bytes + (description.validation_documents or 0)
        assert description.bytes_per_token == description.validation_bytes / description.validation_tokens
        assert json.loads(json.dumps(dataclasses.asdict(description)))["seq_len"] == 512

    def test_the_blocks_are_full_and_in_memory(self, embedded: PackedData) -> None:
        assert len(embedded.train) == (embedded.description.train_tokens or 0) // 512
        assert len(embedded.validation) == 20
        assert {len(block) for block in blocks(embedded.validation)} == {512}
        assert embedded.train.cache_files == embedded.validation.cache_files == []

    def test_two_loads_are_equal_and_take_seconds(self, embedded: PackedData) -> None:
        start = time.process_time()
        again = load_data(seq_len=512, validation_blocks=20)
        assert time.process_time() - start < 10  # two on an idle core
        assert again.description == embedded.description
        assert blocks(again.validation) == blocks(embedded.validation)
        assert blocks(again.train.select(range(50))) == blocks(embedded.train.select(range(50)))

    def test_evaluation_takes_the_validation_side(self, embedded: PackedData) -> None:
        validation, description = load_evaluation_data((), tokenizer=embedded.tokenizer, seq_len=512, max_blocks=20)
        assert blocks(validation) == blocks(embedded.validation)
        assert description.validation_documents == embedded.description.validation_documents
        assert description.train_documents is None


class TestLocal:
    def test_folders_files_and_globs_mix(self, corpus: Path, write_rows: WriteRows) -> None:
        extra = write_rows(corpus.parent / "extra.jsonl", [{"text": "more\n"}])
        data = load_data([str(corpus), str(corpus.parent / "*.jsonl"), str(extra)], seq_len=32)
        description = data.description
        assert description.name == f"{corpus} {corpus.parent}/*.jsonl {extra}"
        assert (description.train_documents or 0) + (description.validation_documents or 0) == 302
        assert load_data(str(extra), seq_len=2).description.name == str(extra)

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_the_sides_share_no_document_and_two_loads_are_equal(
        self, corpus: Path, cache: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(text_files, "IN_MEMORY_BYTES", 2**30 if in_memory else 0)
        first, second = (load_data([str(corpus)], seq_len=16, pack="isolate") for _ in range(2))
        assert first.description == second.description
        assert blocks(first.train) == blocks(second.train)
        assert blocks(first.validation) == blocks(second.validation)
        train, validation = words(first.train), words(first.validation)
        assert not train & validation
        assert len(train | validation) >= 298
        assert any(cache.rglob("*.arrow")) is not in_memory

    def test_the_hash_is_of_the_content(self, corpus: Path) -> None:
        before = load_data([str(corpus)], seq_len=16).description.sha256
        (corpus / "page.txt").rename(corpus / "a_page.txt")
        reordered = load_data([str(corpus / "*.jsonl"), str(corpus / "*.txt")], seq_len=16).description.sha256
        (corpus / "a_page.txt").write_text("A page of its own!\n" * 5)
        assert load_data([str(corpus / "*.jsonl"), str(corpus)], seq_len=16).description.sha256 != reordered
        assert before is not None

    def test_a_single_text_is_cut(self, tmp_path: Path) -> None:
        text = "".join(SENTENCE.format(n) for n in range(200))
        (tmp_path / "book.txt").write_text(text)
        data = load_data([str(tmp_path / "book.txt")], seq_len=8)
        assert words(data.train) == {str(n) for n in range(190)}
        assert words(data.validation) >= {str(n) for n in range(190, 199)}
        assert data.description.train_documents == data.description.validation_documents == 1

    def test_another_tokenizer_makes_fewer_tokens_of_the_bytes(
        self, tmp_path: Path, write_rows: WriteRows, bpe_file: Path
    ) -> None:
        rows = [{"text": f"def f(self, x):\n    return {n}\n"} for n in range(200)]
        data = load_data([str(write_rows(tmp_path / "code.jsonl", rows))], tokenizer=str(bpe_file), seq_len=16)
        assert data.description.tokenizer == str(bpe_file)
        assert data.description.vocab_size == len(data.tokenizer)
        assert data.description.validation_bytes is not None
        assert data.description.bytes_per_token == pytest.approx(
            data.description.validation_bytes / (data.description.validation_tokens or 0)
        )
        assert data.description.bytes_per_token > 1.5

    def test_evaluation_takes_every_document(self, corpus: Path) -> None:
        evaluation, description = load_evaluation_data([str(corpus)], tokenizer=load_tokenizer("bytes"), seq_len=16)
        assert description.validation_documents == 301
        assert len(words(evaluation)) >= 299
        assert len(evaluation) == (description.validation_tokens or 0) // 16

    def test_nothing_is_printed_or_written(
        self, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.rglob("*"))
        load_data([str(corpus)], seq_len=16)
        assert set(tmp_path.rglob("*")) == before
        assert capfd.readouterr() == ("", "")


class TestStream:
    @pytest.fixture
    def folder(self, tmp_path: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder that stands for the data set owner/name of the hub: `datasets` reads both by one path."""

        def open_folder(spec: str, text_field: str) -> tuple[hub.StreamedDocuments, hub.StreamedDocuments]:
            return hub.open_stream(str(tmp_path / spec), text_field=text_field, label=spec)

        monkeypatch.setattr(text_loading, "open_hub", open_folder)
        write_rows(tmp_path / "owner/name/data.jsonl", [{"text": SENTENCE.format(n)} for n in range(1000)])
        return tmp_path / "owner/name"

    def test_it_trains_on_a_stream_and_validates_on_a_data_set(self, folder: Path) -> None:
        data = load_data(["owner/name"], seq_len=32, pack="isolate", validation_blocks=40)
        assert isinstance(data.train, IterableDataset)
        assert len(data.validation) == 40
        assert blocks(data.train) == blocks(data.train)
        assert not words(data.train) & words(data.validation)
        batch = collate(list(data.train.take(3)))
        assert batch["position_ids"].shape == (3, 32)
        assert (batch["labels"] == -100).equal(batch["position_ids"] == 0)
        description = data.description
        assert description.name == "owner/name"
        assert {
            field: getattr(description, field) for field in ("sha256", "train_documents", "train_bytes", "train_tokens")
        } == dict.fromkeys(("sha256", "train_documents", "train_bytes", "train_tokens"))
        assert 0.9 < description.bytes_per_token < 1

    def test_without_a_limit_it_validates_on_the_begin(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_loading, "_STREAM_VALIDATION_TOKENS", 640)
        monkeypatch.setattr("exsel.data.packing._STREAM_ROWS", 4)
        data = load_data(["owner/name"], seq_len=32)
        assert 640 <= (data.description.validation_tokens or 0) < 640 + 4 * 70

    def test_evaluation_takes_the_same_documents(self, folder: Path) -> None:
        data = load_data(["owner/name"], seq_len=32, validation_blocks=40)
        evaluation, description = load_evaluation_data(
            ["owner/name"], tokenizer=data.tokenizer, seq_len=32, max_blocks=40
        )
        assert blocks(evaluation) == blocks(data.validation)
        assert description.sha256 is None

    def test_one_without_validation_documents_is_an_error(self, folder: Path, write_rows: WriteRows) -> None:
        write_rows(folder / "data.jsonl", [{"text": "0"}])
        with pytest.raises(ExselError, match="owner/name holds no text to validate on"):
            load_data(["owner/name"], seq_len=32)


class TestMistakes:
    def test_a_sequence_longer_than_the_data(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("0123456789\n" * 20)
        path = str(tmp_path / "a.txt")
        with pytest.raises(
            ExselError, match="a sequence of 4096 tokens is longer than the training data, which has 210"
        ):
            load_data([path], seq_len=4096)
        with pytest.raises(
            ExselError, match="a sequence of 64 tokens is longer than the validation data, which has 12"
        ):
            load_data([path], seq_len=64)
        with pytest.raises(
            ExselError, match="a sequence of 999 tokens is longer than the evaluation data, which has 221"
        ):
            load_evaluation_data([path], tokenizer=load_tokenizer("bytes"), seq_len=999)

    def test_a_single_character(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(ExselError, match="a sequence of 2 tokens is longer than the training data, which has 1"):
            load_data([str(tmp_path / "a.txt")], seq_len=2)

    def test_a_block_of_one_token(self) -> None:
        with pytest.raises(ExselError, match="a block needs at least 2 tokens, not 1"):
            load_data(seq_len=1)

    def test_an_unknown_packing(self) -> None:
        with pytest.raises(ExselError, match="no packing is called 'split': choose one of concat, isolate"):
            load_data(seq_len=8, pack="split")

    def test_an_empty_value(self) -> None:
        with pytest.raises(ExselError, match="--data got an empty value"):
            load_data([""], seq_len=8)

    def test_a_data_set_mixed_with_files(self, corpus: Path) -> None:
        with pytest.raises(ExselError, match=r"no such file or folder: owner/name \(and .* cannot be mixed"):
            load_data([str(corpus), "owner/name"], seq_len=8)

    def test_a_misspelt_file(self) -> None:
        with pytest.raises(ExselError, match=r"no such file or folder: corpsu\.txt"):
            load_data(["corpsu.txt"], seq_len=8)

    def test_a_misspelt_data_set(self) -> None:
        with pytest.raises(ExselError, match="no file or folder corpsu, and no Hugging Face data set"):
            load_data(["corpsu"], seq_len=8)

    def test_a_tokenizer_without_an_end(self, corpus: Path) -> None:
        tokenizer = load_tokenizer("bytes")
        tokenizer.eos_token = None
        with pytest.raises(ExselError, match="the tokenizer has no end-of-text token"):
            load_evaluation_data([str(corpus)], tokenizer=tokenizer, seq_len=8)


def test_positions_restart_only_when_isolated(corpus: Path) -> None:
    data = load_data([str(corpus)], seq_len=16, pack="isolate")
    batch = collate([data.train[n] for n in range(8)])
    assert (batch["position_ids"][:, 0] == 0).all()
    assert torch.equal(batch["labels"] == -100, batch["position_ids"] == 0)
    assert "position_ids" not in load_data([str(corpus)], seq_len=16).train.column_names


def test_the_description_holds_plain_values(embedded: PackedData) -> None:
    assert {type(value) for value in dataclasses.asdict(embedded.description).values()} <= {str, int, float}
    assert isinstance(embedded.description, DataDescription)
