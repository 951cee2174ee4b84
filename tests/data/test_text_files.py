from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exsel.data import documents, text_files
from exsel.data.text_files import find_files, is_local, load_files, read_rows
from exsel.errors import ExselError

from .conftest import WriteRows


def read(*paths: Path, text_field: str = "text") -> list[str]:
    """The documents, joined from their rows."""
    joined = [""]
    for text, ends in read_rows(paths, text_field):
        joined[-1] += text
        if ends:
            joined.append("")
    assert joined.pop() == "", "the last document does not end"
    return joined


def test_each_type_holds_documents_in_its_way(tmp_path: Path, write_rows: WriteRows) -> None:
    text, lines, parquet = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.parquet"
    text.write_bytes("one document\r\nof two lines, é\n".encode())
    write_rows(lines, [{"body": "first", "id": 1}, {"body": "", "id": 2}, {"body": None}, {"body": "é\n"}])
    pq.write_table(pa.table({"id": [1, 2, 3], "body": ["third", None, "fourth"]}), parquet)
    assert read(parquet, text, lines, text_field="body") == [
        "third",
        "fourth",
        "one document\r\nof two lines, é\n",
        "first",
        "é\n",
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_may_be_of_any_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", "y", "x"]).cast(kind)}), path)
    assert read(path) == ["x", "y", "x"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n\n{"text": "y"}')
    assert read(tmp_path / "a.txt", tmp_path / "b.jsonl") == ["hello", "x", "y"]


@pytest.mark.parametrize("size", [8, 9, 11, 64])
@pytest.mark.parametrize("text", ["one\ntwo\r\n\nthree\n", "no line ends: é🙂é🙂ÿÿ", "aé\n", "\n" * 9, "🙂" * 7])
def test_a_text_is_read_in_rows_that_join_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    monkeypatch.setattr(text_files, "_READ_BYTES", size)
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.txt").write_bytes(mark + text.encode())
        rows = list(read_rows([tmp_path / "a.txt"], "text"))
        assert "".join(row for row, _ in rows) == text
        assert [ends for _, ends in rows] == [False] * (len(rows) - 1) + [True]
        assert all(row for row, _ in rows)
        assert (len(rows) > 1) is (len(mark) + len(text.encode()) > size)


@pytest.mark.parametrize("size", [8, 9, 11, 64])
@pytest.mark.parametrize("content", [b"abc\ndef\xffgh\nij", b"\xef\xbb\xbf\nabcd\x80\x80\x80\x80\x80", b"abc\nde\xc3"])
def test_the_byte_that_is_no_text_is_found_in_any_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, size: int
) -> None:
    monkeypatch.setattr(text_files, "_READ_BYTES", size)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UnicodeDecodeError) as expected:
        content.decode()
    with pytest.raises(ExselError, match=f"byte {expected.value.start} is 0x{content[expected.value.start]:02x}"):
        read(tmp_path / "a.txt")


def test_long_rows_of_json_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: WriteRows) -> None:
    monkeypatch.setattr(documents, "ROW_CHARACTERS", 6)
    path = write_rows(tmp_path / "a.jsonl", [{"text": "one\ntwo\nseventeen"}, {"text": "x"}])
    assert list(read_rows([path], "text")) == [
        ("one\n", False),
        ("two\n", False),
        ("sevent", False),
        ("een", True),
        ("x", True),
    ]


def test_folders_and_globs_expand_in_order_and_files_count_once(tmp_path: Path, write_rows: WriteRows) -> None:
    for name in ("z.txt", "a.md", "deep/b.py", "deep/skipped.bin", ".hidden/c.txt", "Makefile"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    write_rows(tmp_path / "deep" / "d.jsonl", [{"text": "d"}])
    folder = [tmp_path / name for name in ("a.md", "deep/b.py", "deep/d.jsonl", "z.txt")]
    assert find_files([str(tmp_path)]) == folder
    assert find_files([f"{tmp_path}/**/*.py", f"{tmp_path}/?.*", f"{tmp_path}/z.txt"]) == [
        tmp_path / "deep" / "b.py",
        tmp_path / "a.md",
        tmp_path / "z.txt",
    ]
    assert find_files([str(tmp_path / "Makefile")]) == [tmp_path / "Makefile"]
    assert find_files([str(tmp_path / "dee*")]) == [tmp_path / "deep" / "b.py", tmp_path / "deep" / "d.jsonl"]


def test_a_path_is_told_from_the_name_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikitext").mkdir()
    for spec in (
        "wikitext",
        "missing.txt",
        "missing.json",
        "./missing",
        "/missing",
        "~/missing",
        "mis*ing",
        "sub/missing.JSONL",
    ):
        assert is_local(spec), spec
    for spec in ("imdb", "owner/name", "owner/name:config", "owner/name-v1.1"):
        assert not is_local(spec), spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.txt", r"no such file or folder: missing\.txt"),
        ("*.txt", r"nothing matches \*\.txt"),
        ("void", "void holds no text, .jsonl or .parquet file"),
        ("empty.md", r"empty\.md is empty"),
        ("table.csv", r"table\.csv: files of type \.csv are not supported; use \.jsonl, \.parquet or text \(\.txt, "),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.md").touch()
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(ExselError, match=message):
        find_files([spec])


def test_files_without_any_text_are_an_error(tmp_path: Path, write_rows: WriteRows) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": ""}, {"text": None}])
    with pytest.raises(ExselError, match=r"no text in .*a\.jsonl: every document is empty"):
        load_files([path], "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nthen \xff", r"a\.txt is not UTF-8 text: byte 10 is 0xff; convert the file"),
        ("a.txt", b"\xef\xbb\xbf\xff", r"byte 3 is 0xff"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', r"a\.jsonl is not UTF-8 text: byte 24 is 0xe9"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2 is not JSON: .* at column"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl, line 1 is not a JSON object but \[.x.\]"),
        (
            "a.jsonl",
            b'{"b": "x", "a": 1}\n',
            r"a\.jsonl, line 1 has no field 'text': choose one of a, b with --text-field",
        ),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: field 'text' holds 3, not text"),
        ("a.jsonl", b'{"text": ["x"]}\n', r"line 1: field 'text' holds \['x'\], not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: field 'text' holds half a surrogate pair"),
        ("a.parquet", b"PAR1 but no more", r"a\.parquet is not a readable Parquet file"),
    ],
)
def test_what_is_wrong_inside_a_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExselError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).count("\n") == 0


def test_surrogate_pairs_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "🙂"}))
    assert read(tmp_path / "a.jsonl") == ["🙂"]


def test_parquet_fields_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), path)
    with pytest.raises(ExselError, match=r"a\.parquet has no field 'text': choose one of body, id with --text-field"):
        read(path)
    with pytest.raises(ExselError, match=r"field 'id' holds int64, not text"):
        read(path, text_field="id")


def test_parquet_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"text": broken}), path)
    with pytest.raises(
        ExselError, match=r"a\.parquet: field 'text' holds a value that is not UTF-8: byte 1 of it is 0xff"
    ):
        read(path)


def test_a_file_that_vanishes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExselError, match=r"gone\.txt cannot be read: No such file"):
        read(tmp_path / "gone.txt")


class TestMemoryMapped:
    @pytest.fixture(autouse=True)
    def _everything_is_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_files, "IN_MEMORY_BYTES", 0)

    def test_the_documents_are_the_same_and_lie_in_the_cache(
        self, tmp_path: Path, cache: Path, write_rows: WriteRows, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = write_rows(tmp_path / "a.jsonl", [{"text": f"document {n}"} for n in range(2500)])
        rows = load_files([path], "text")
        assert list(rows["text"]) == read(path)
        assert [Path(file["filename"]).is_relative_to(cache) for file in rows.cache_files] == [True]
        assert list(tmp_path.iterdir()) == [path]
        assert capfd.readouterr() == ("", "")
        assert not datasets.are_progress_bars_disabled()

    def test_a_changed_file_is_read_again(self, tmp_path: Path, write_rows: WriteRows) -> None:
        path = write_rows(tmp_path / "a.jsonl", [{"text": "old"}])
        assert list(load_files([path], "text")["text"]) == ["old"]
        write_rows(path, [{"text": "new one"}])
        assert list(load_files([path], "text")["text"]) == ["new one"]

    def test_a_mistake_is_reported_as_such(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xff")
        with pytest.raises(ExselError, match="byte 0 is 0xff"):
            load_files([tmp_path / "a.txt"], "text")

    def test_no_text_is_an_error(self, tmp_path: Path, write_rows: WriteRows) -> None:
        path = write_rows(tmp_path / "a.jsonl", [{"text": ""}])
        with pytest.raises(ExselError, match="every document is empty"):
            load_files([path], "text")
