from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from exsel.data import documents, packing, text_files
from exsel.data.documents import rows_of, to_dataset
from exsel.data.packing import (
    Pack,
    Packer,
    collate,
    evenly_spread,
    joined_blocks,
    pack_corpus,
    pack_stream,
    token_counts,
)
from exsel.data.splitting import Corpus
from exsel.data.tokenization import load_tokenizer

END = 1
DOCUMENTS = ["abcdefg", "hi", "jklmnopqrstuvwxyz0123456789", "!!"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("bytes")


def corpus(texts: list[str] = DOCUMENTS) -> Corpus:
    return Corpus.of(to_dataset(rows_of(texts)))


def stream(texts: list[str] = DOCUMENTS) -> list[int]:
    """The tokens of documents by the definition."""
    return [token for text in texts for token in [*(byte + 3 for byte in text.encode()), END]]


def positions(texts: list[str], seq_len: int) -> list[int]:
    """The positions of isolated documents by the definition."""
    result: list[int] = []
    for text in texts:
        position = 0
        for _ in range(len(text.encode()) + 1):
            if len(result) % seq_len == 0:
                position = 0
            result.append(position)
            position += 1
    return result


def column(blocks: Any, name: str = "input_ids") -> list[list[int]]:
    return [np.asarray(block[name]).tolist() for block in blocks]


def cut(tokens: list[int], seq_len: int) -> list[list[int]]:
    return [tokens[start : start + seq_len] for start in range(0, len(tokens) // seq_len * seq_len, seq_len)]


@pytest.mark.parametrize("seq_len", [2, 3, 7, 16, 43, 44])
@pytest.mark.parametrize("pack", ["concat", "isolate"])
def test_blocks_are_the_stream_cut_up(tokenizer: PreTrainedTokenizerBase, seq_len: int, pack: Pack) -> None:
    blocks, num_tokens = pack_corpus(corpus(), tokenizer, seq_len=seq_len, pack=pack)
    assert num_tokens == len(stream())
    assert column(blocks) == cut(stream(), seq_len)
    if pack == "isolate":
        assert column(blocks, "position_ids") == cut(positions(DOCUMENTS, seq_len), seq_len)
    else:
        assert blocks.column_names == ["input_ids"]


@pytest.mark.parametrize("pack", ["concat", "isolate"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_leave_no_seam(
    tokenizer: PreTrainedTokenizerBase, pack: Pack, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = Packer(tokenizer, 5, pack)
    monkeypatch.setattr(documents, "ROW_CHARACTERS", 4)
    rows = list(rows_of(DOCUMENTS))
    assert len(rows) == 11
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    parts = [packer(batch, last=batch is batches[-1]) for batch in batches]
    joined = {name: [int(id_) for part in parts for block in part[name] for id_ in block] for name in parts[0]}
    assert joined.pop("input_ids") == stream()
    assert joined == ({"position_ids": positions(DOCUMENTS, 5)} if pack == "isolate" else {})


@pytest.mark.parametrize("rows_a_batch", [1, 1000])
def test_many_map_batches_leave_no_seam(
    tokenizer: PreTrainedTokenizerBase, rows_a_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_MOST_ROWS", rows_a_batch)
    texts = [f"document {n}" for n in range(2500)]
    blocks, num_tokens = pack_corpus(corpus(texts), tokenizer, seq_len=100, pack="isolate")
    assert num_tokens == len(stream(texts))
    assert column(blocks) == cut(stream(texts), 100)
    assert column(blocks, "position_ids") == cut(positions(texts, 100), 100)


def test_less_than_a_block_gives_none_and_says_how_much_there_was(tokenizer: PreTrainedTokenizerBase) -> None:
    blocks, num_tokens = pack_corpus(corpus(), tokenizer, seq_len=1000, pack="concat")
    assert (len(blocks), num_tokens) == (0, len(stream()))


def test_blocks_are_int32_in_memory(tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]) -> None:
    blocks, _ = pack_corpus(corpus(), tokenizer, seq_len=8, pack="isolate")
    assert blocks.cache_files == []
    assert {blocks[0][name].dtype for name in ("input_ids", "position_ids")} == {np.dtype(np.int32)}
    assert capfd.readouterr() == ("", "")


def test_memory_mapped_documents_give_memory_mapped_blocks_which_are_found_again(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "IN_MEMORY_BYTES", 0)
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    text = Corpus.of(text_files.load_files([tmp_path / "a.txt"], "text"))
    blocks, num_tokens = pack_corpus(text, tokenizer, seq_len=8, pack="concat")
    (file,) = [Path(entry["filename"]) for entry in blocks.cache_files]
    assert file.is_relative_to(cache)
    assert column(blocks) == cut(stream(["some text\n" * 100]), 8)
    written = file.stat().st_mtime_ns
    again, again_tokens = pack_corpus(text, tokenizer, seq_len=8, pack="concat")
    assert (column(again), again_tokens) == (column(blocks), num_tokens)
    assert file.stat().st_mtime_ns == written
    other, _ = pack_corpus(text, tokenizer, seq_len=9, pack="isolate")
    assert column(other) == cut(stream(["some text\n" * 100]), 9)


@pytest.mark.parametrize("pack", ["concat", "isolate"])
def test_a_stream_gives_the_same_blocks_every_time_it_is_read(tokenizer: PreTrainedTokenizerBase, pack: Pack) -> None:
    texts = [f"document {n}" for n in range(500)]
    blocks = pack_stream(texts, tokenizer, seq_len=64, pack=pack)
    assert isinstance(blocks, IterableDataset)
    partly = column(itertools.islice(blocks, 3))
    assert column(blocks) == column(blocks) == cut(stream(texts), 64)
    assert partly == cut(stream(texts), 64)[:3]
    if pack == "isolate":
        assert column(blocks, "position_ids") == cut(positions(texts, 64), 64)


def test_spread_takes_blocks_from_everywhere() -> None:
    blocks = Dataset.from_dict({"n": list(range(10))})
    assert evenly_spread(blocks, None) is blocks
    assert evenly_spread(blocks, 10) is blocks
    assert evenly_spread(blocks, 4)["n"][:] == [0, 2, 5, 7]


def test_joined_blocks_are_those_of_the_longer_length(tokenizer: PreTrainedTokenizerBase) -> None:
    blocks, _ = pack_corpus(corpus(), tokenizer, seq_len=3, pack="concat")
    longer, _ = pack_corpus(corpus(), tokenizer, seq_len=12, pack="concat")
    joined = joined_blocks(blocks, 4, 100)
    assert [block["input_ids"].tolist() for block in joined] == [block["input_ids"].tolist() for block in longer]
    assert [block["input_ids"][0] for block in joined_blocks(blocks, 4, 2)] == [
        longer[0]["input_ids"][0],
        longer[len(longer) // 2]["input_ids"][0],
    ]
    assert joined_blocks(blocks.select(range(3)), 4, 2) == []


def test_tokens_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    blocks, _ = pack_corpus(corpus(), tokenizer, seq_len=7, pack="isolate")
    expected = torch.bincount(torch.tensor(cut(stream(), 7)).ravel(), minlength=259)
    counts = token_counts(blocks, 259)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)
    # Of six blocks the first, third and fifth.
    some = torch.bincount(torch.tensor(cut(stream(), 7)[::2]).ravel(), minlength=259)
    assert torch.equal(token_counts(blocks, 259, max_blocks=3), some)
    streamed = pack_stream(DOCUMENTS, tokenizer, seq_len=7, pack="concat")
    assert torch.equal(token_counts(streamed, 259), expected)
    first = torch.bincount(torch.tensor(cut(stream(), 7)[:2]).ravel(), minlength=259)
    assert torch.equal(token_counts(streamed, 259, max_blocks=2), first)


class TestCollate:
    def test_labels_are_the_inputs(self, tokenizer: PreTrainedTokenizerBase) -> None:
        blocks, _ = pack_corpus(corpus(), tokenizer, seq_len=7, pack="concat")
        batch = collate([blocks[0], blocks[1]])
        assert batch.keys() == {"input_ids", "labels"}
        assert batch["input_ids"].tolist() == cut(stream(), 7)[:2]
        assert batch["labels"].tolist() == [[-100, *block[1:]] for block in cut(stream(), 7)[:2]]
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["input_ids"].data_ptr() != batch["labels"].data_ptr()

    def test_no_token_is_predicted_from_another_document(self, tokenizer: PreTrainedTokenizerBase) -> None:
        blocks, _ = pack_corpus(corpus(["abc", "de", "fghij"]), tokenizer, seq_len=6, pack="isolate")
        batch = collate([blocks[0], blocks[1]])
        a, b, c, d, e, f, g, h, i = (ord(letter) + 3 for letter in "abcdefghi")
        assert batch["input_ids"].tolist() == [[a, b, c, END, d, e], [END, f, g, h, i, i + 1]]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4]]
        assert batch["labels"].tolist() == [[-100, b, c, END, -100, e], [-100, -100, g, h, i, i + 1]]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}

    @pytest.mark.parametrize("streamed", [False, True])
    def test_it_serves_a_data_loader(self, tokenizer: PreTrainedTokenizerBase, streamed: bool) -> None:
        blocks = (
            pack_stream(DOCUMENTS, tokenizer, seq_len=7, pack="isolate")
            if streamed
            else pack_corpus(corpus(), tokenizer, seq_len=7, pack="isolate")[0]
        )
        batches = list(DataLoader(blocks, batch_size=4, collate_fn=collate))
        assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 7), (2, 7)]
        assert torch.cat([batch["input_ids"] for batch in batches]).tolist() == cut(stream(), 7)

    def test_it_takes_lists_and_tensors(self) -> None:
        batch = collate([{"input_ids": [4, 5]}, {"input_ids": torch.tensor([6, 7], dtype=torch.int32)}])
        assert batch["labels"].tolist() == [[-100, 5], [-100, 7]]
