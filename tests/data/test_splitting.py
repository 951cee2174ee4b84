from __future__ import annotations

import hashlib

import pytest

from exsel.data import documents as documents_module
from exsel.data.documents import rows_of, to_dataset
from exsel.data.splitting import (
    Corpus,
    cut_tail,
    is_validation,
    key_of,
    split_by_content,
    split_by_name,
)


def corpus(documents: list[str]) -> Corpus:
    return Corpus.of(to_dataset(rows_of(documents)))


def texts(side: Corpus) -> list[str]:
    """The documents of a side, joined from their rows."""
    joined = [""]
    for row in side.rows:
        joined[-1] += row["text"]
        if row["ends"]:
            joined.append("")
    assert joined.pop() == "", "the last document does not end"
    assert len(side.sizes) == len(joined)
    assert side.num_bytes == sum(len(text.encode()) for text in joined)
    return joined


def test_the_rule_is_fixed() -> None:
    # A change here silently moves documents between train and validation of every user's corpus.
    assert key_of("argparse.py") == int.from_bytes(hashlib.sha256(b"argparse.py").digest()[:8], "big")
    assert [n for n in range(100) if is_validation(key_of(str(n)))] == [39, 51, 55]


def test_five_in_a_hundred_validate() -> None:
    assert 450 < sum(is_validation(key_of(str(n))) for n in range(10_000)) < 550


def test_a_side_is_measured_in_utf8_and_identified_by_content_and_order() -> None:
    side = corpus(["aé", "b"])
    assert side.num_bytes == 4
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in ["aé", "b"])
    assert side.digest == hashlib.sha256(digests).digest()
    assert corpus(["b", "aé"]).digest != side.digest


def test_by_name_each_document_falls_where_its_name_says() -> None:
    documents = {str(n): f"document {n}" for n in range(100)}
    train, validation = split_by_name(documents)
    assert texts(validation) == ["document 39", "document 51", "document 55"]
    assert sorted(texts(train) + texts(validation)) == sorted(documents.values())


def test_by_content_the_sides_are_disjoint_complete_and_independent_of_order() -> None:
    documents = [f"document {n % 500}" for n in range(1000)]
    train, validation = split_by_content(corpus(documents))
    assert not set(texts(train)) & set(texts(validation))
    assert sorted(texts(train) + texts(validation)) == sorted(documents)
    assert set(texts(validation)) == {text for text in documents if is_validation(key_of(text))}
    assert validation.num_bytes == sum(map(len, texts(validation)))
    assert set(texts(split_by_content(corpus(documents[::-1]))[1])) == set(texts(validation))


@pytest.mark.parametrize("count", range(2, 30))
def test_few_documents_leave_something_on_both_sides(count: int) -> None:
    documents = [f"{count}-{n}\n" * 50 for n in range(count)]
    train, validation = split_by_content(corpus(documents))
    total = train.num_bytes + validation.num_bytes
    assert total == sum(map(len, documents))
    assert 0.01 <= validation.num_bytes / total <= 0.25
    assert not set(texts(train)) & set(texts(validation))


def test_a_document_that_is_nearly_everything_never_validates_whole() -> None:
    for seed in range(40):  # the hash sends the long document to each side several times
        long = f"line of {seed}\n" * 10_000
        train, validation = split_by_content(corpus([long, "short one", "short two"]))
        assert validation.num_bytes < 0.1 * train.num_bytes
        assert train.num_bytes + validation.num_bytes == len(long) + 18
        assert validation.num_bytes > 0.01 * len(long)


def test_of_a_single_document_the_last_lines_validate() -> None:
    document = "".join(f"line {n}\n" for n in range(1000))
    (train,), (validation,) = map(texts, split_by_content(corpus([document])))
    assert train + validation == document
    assert train.endswith("\n")
    assert 0.04 < len(validation) / len(document) < 0.06


def test_copies_of_a_single_document_do_not_leak_its_end_into_training() -> None:
    document = "".join(f"line {n}\n" for n in range(1000))
    train, validation = split_by_content(corpus([document] * 3))
    assert len(texts(train)) == 1
    assert texts(train)[0] + texts(validation)[0] == document


@pytest.mark.parametrize("in_rows", [False, True])
def test_documents_in_several_rows_are_split_as_wholes(in_rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_rows:
        monkeypatch.setattr(documents_module, "ROW_CHARACTERS", 7)
    documents = [f"document {n}\n" * (n % 4 + 1) for n in range(300)]
    held = corpus(documents)
    assert (len(held.rows) > 300) is in_rows
    train, validation = split_by_content(held)
    assert texts(validation) == [text for text in documents if is_validation(key_of(text))]
    assert texts(train) == [text for text in documents if not is_validation(key_of(text))]


@pytest.mark.parametrize("row_characters", [100, 800, 5000, 10**6])
def test_the_end_of_a_document_in_several_rows_validates(row_characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "ROW_CHARACTERS", row_characters)
    document = "".join(f"line {n}\n" for n in range(1000))
    train, validation = split_by_content(corpus(["tiny", document, document]))
    tiny, head = texts(train)
    (tail,) = texts(validation)
    assert tiny == "tiny"
    assert head + tail == document
    assert head.endswith("\n")
    assert 0.03 < len(tail) / len(document) < 0.16


@pytest.mark.parametrize(
    ("text", "share", "expected"),
    [
        ("aaa\nbbb\nccc\nddd\n", 0.25, ("aaa\nbbb\nccc\n", "ddd\n")),
        ("aaaaaaaaaa", 0.2, ("aaaaaaaa", "aa")),
        ("a\naaaaaaaaaaaaaaaaaaaaaaa", 0.04, ("a\naaaaaaaaaaaaaaaaaaaaaa", "a")),
        ("ab", 0.01, ("a", "b")),
        ("x" * 58 + "\n" + "y" * 41, 0.44, ("x" * 58 + "\n", "y" * 41)),
    ],
)
def test_a_tail_is_cut_at_a_line_if_one_is_near(text: str, share: float, expected: tuple[str, str]) -> None:
    assert cut_tail(text, share) == expected
