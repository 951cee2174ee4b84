from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exsel.data.hub import open_hub, open_stream
from exsel.data.splitting import is_validation, key_of
from exsel.errors import ExselError

from .conftest import WriteRows


def open_folder(folder: Path, text_field: str = "text") -> tuple[list[str], list[str]]:
    train, validation = open_stream(str(folder), text_field=text_field, label=folder.name)
    return list(train), list(validation)


def test_its_own_splits_are_used(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": f"train {n}", "id": n} for n in range(30)] + [{"text": ""}])
    write_rows(tmp_path / "validation.jsonl", [{"text": f"validation {n}"} for n in range(3)])
    write_rows(tmp_path / "test.jsonl", [{"text": "test"}])
    train, validation = open_folder(tmp_path)
    assert train == [f"train {n}" for n in range(30)]
    assert validation == [f"validation {n}" for n in range(3)]


def test_a_test_split_validates_where_there_is_no_other(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a", "b"]}), tmp_path / "train-00000.parquet")
    pq.write_table(pa.table({"body": ["c"]}), tmp_path / "test-00000.parquet")
    assert open_folder(tmp_path, "body") == (["a", "b"], ["c"])


def test_a_single_split_is_told_apart_by_content(tmp_path: Path, write_rows: WriteRows) -> None:
    texts = [f"document {n % 300}" for n in range(400)]
    write_rows(tmp_path / "data.jsonl", [{"text": text} for text in texts])
    train, validation = open_folder(tmp_path)
    assert validation == [text for text in texts if is_validation(key_of(text))]
    assert train == [text for text in texts if not is_validation(key_of(text))]
    assert validation


def test_a_lone_test_split_is_told_apart_by_content_too(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows(tmp_path / "test.jsonl", [{"text": str(n)} for n in range(100)])
    train, validation = open_folder(tmp_path)
    assert validation == ["39", "51", "55"]
    assert len(train) == 97


def test_every_iteration_begins_anew(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    train, _ = open_stream(str(tmp_path), text_field="text", label="data")
    assert next(iter(train)) == "a"
    assert list(train) == list(train) == ["a", "b"]


@pytest.mark.parametrize(("files", "parts"), [(1, ["ac", "bd"]), (2, ["ab", "cd"])])
def test_processes_divide_a_stream(tmp_path: Path, write_rows: WriteRows, files: int, parts: list[str]) -> None:
    """By file if the files divide equally, otherwise in turn."""
    for number in range(files):
        texts = "abcd"[number * 4 // files : (number + 1) * 4 // files]
        write_rows(tmp_path / f"train-{number}.jsonl", [{"text": text} for text in texts])
    train, _ = open_stream(str(tmp_path), text_field="text", label="data")
    assert ["".join(train.part(rank, 2)) for rank in range(2)] == parts


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"b": "x", "a": "y"}], "data has no field 'text': choose one of a, b with --text-field"),
        ([{"text": 3}], "data: field 'text' holds 3, not text"),
        ([{"text": ""}], "data: split 'train' holds no text in field 'text'"),
    ],
)
def test_rows_without_text_are_an_error(
    tmp_path: Path, write_rows: WriteRows, rows: list[object], message: str
) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    with pytest.raises(ExselError, match=message):
        open_folder(tmp_path / "data")


def test_an_unknown_configuration_is_an_error(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(ExselError, match=r"no Hugging Face data set could be loaded by that name: .*nothing") as caught:
        open_stream(str(tmp_path), "nothing", text_field="text", label="data:nothing")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("spec", ["imdb", "nobody/nothing", "nobody/nothing:config"])
def test_what_the_hub_does_not_give_is_an_error(spec: str) -> None:
    with pytest.raises(
        ExselError, match=f"no file or folder {spec}, and no .* by that name: .*offline mode is enabled"
    ):
        open_hub(spec, "text")


@pytest.mark.parametrize("spec", ["two words", "a/b/c", "a/b:", "https://example.org/x"])
def test_what_is_not_a_name_is_an_error(spec: str) -> None:
    with pytest.raises(ExselError, match="is neither a file, folder or glob nor a data set: use a path, name or"):
        open_hub(spec, "text")
