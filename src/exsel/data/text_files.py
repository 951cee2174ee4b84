"""Local data: find the files that a ``--data`` value names, and read the documents in them.

The readers of `datasets` are not used: they change line ends, read dates as timestamps, and report a damaged line by
its place in their buffer.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from exsel.data.documents import FEATURES, Row, no_progress_bars, rows_of, to_dataset
from exsel.errors import ExselError, first_line

_SUFFIXES = frozenset(
    {".jsonl", ".parquet", ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".py", ".c", ".h", ".cc", ".cpp"}
    | {".hpp", ".cu", ".java", ".js", ".ts", ".go", ".rs", ".sh", ".sql", ".lean"}
)
# A value with such a suffix means a file, even a missing one: it is not looked up on the hub.
_FAMILIAR_SUFFIXES = frozenset(
    {".json", ".csv", ".tsv", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".pdf", ".docx"}
)
# Files of more than this together go through a memory-mapped Arrow file in the cache folder of `datasets`.
IN_MEMORY_BYTES = 256 * 2**20
_READ_BYTES = 2**20
_WRITE_ROWS, _PARQUET_ROWS = 100, 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def is_local(spec: str) -> bool:
    """Whether a ``--data`` value names something on this machine: it exists, or is spelled as a path or a glob."""
    path = Path(spec).expanduser()
    is_spelled_so = spec.startswith((".", "/", "~")) or path.suffix.lower() in _SUFFIXES | _FAMILIAR_SUFFIXES
    return path.exists() or glob.has_magic(spec) or is_spelled_so


def find_files(specs: Sequence[str]) -> list[Path]:
    """List the files that the values name, each once: files as they are, folders and globs expanded and sorted.

    A folder is searched with its subfolders for files with a supported suffix (hidden ones left out). A file that is
    named itself may also have no suffix, and is then text.
    """
    found: dict[Path, Path] = {}
    for spec in specs:
        path = Path(spec).expanduser()
        matches = [path]
        if not path.exists():
            if not glob.has_magic(spec):
                raise ExselError(f"no such file or folder: {spec}")
            # Path.glob takes no absolute patterns.
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            if not matches:
                raise ExselError(f"nothing matches {spec}")
            # `**` matches folders and the files in them. The files suffice, unless only folders match.
            matches = [match for match in matches if match.is_file()] or matches
        for match in matches:
            for file in _readable(match):
                found.setdefault(file.resolve(), file)
    return list(found.values())


def _readable(path: Path) -> list[Path]:
    """A file, or the files of a folder."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in _SUFFIXES and file.is_file()]
        shown = [file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts)]
        if not shown:
            raise ExselError(f"{path} holds no text, .jsonl or .parquet file")
        return shown
    if path.suffix and path.suffix.lower() not in _SUFFIXES:
        supported = "use .jsonl, .parquet or text (.txt, .c, .cc, .cpp, .cu, .go, …)"
        raise ExselError(f"{path}: files of type {path.suffix} are not supported; {supported}")
    if path.stat().st_size == 0:
        raise ExselError(f"{path} is empty")
    return [path]


def load_files(files: Sequence[Path], text_field: str) -> Dataset:
    """Read the documents of files (rows as in `exsel.data.documents`), memory-mapped if the files are large."""
    # Checked first: `datasets` cannot write a data set without rows.
    if next(read_rows(files, text_field), None) is None:
        raise ExselError(f"no text in {', '.join(map(str, files[:3]))}: every document is empty")
    if sum(file.stat().st_size for file in files) <= IN_MEMORY_BYTES:
        return to_dataset(read_rows(files, text_field))
    # `datasets` finds an earlier result by its arguments only, so the state of each file is among them. They are in
    # a tuple, since a list would mean shards.
    states = tuple((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    arguments = {"files": states, "text_field": text_field}
    try:
        with no_progress_bars():
            return Dataset.from_generator(
                _examples, features=FEATURES, gen_kwargs=arguments, writer_batch_size=_WRITE_ROWS
            )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ExselError):
            raise error.__cause__ from None
        raise


def _examples(files: Sequence[tuple[str, int, int]], text_field: str) -> Iterator[dict[str, Any]]:
    for text, ends in read_rows([Path(path) for path, _, _ in files], text_field):
        yield {"text": text, "ends": ends}


def read_rows(files: Sequence[Path], text_field: str) -> Iterator[Row]:
    """Read the documents of files in order: a text file is one, ``.jsonl`` and ``.parquet`` hold one a row.

    Empty documents and rows with a null are left out. An error names the file and the place in it.
    """
    for file in files:
        read = {".jsonl": _read_json_lines, ".parquet": _read_parquet}.get(file.suffix.lower())
        try:
            yield from _read_text(file) if read is None else rows_of(read(file, text_field))
        except OSError as error:
            raise ExselError(f"{file} cannot be read: {error.strerror or error}") from error


def _read_text(file: Path) -> Iterator[Row]:
    with file.open("rb") as source:
        data = source.read(_READ_BYTES).removeprefix(_BYTE_ORDER_MARK)
        while data:
            following = source.read(_READ_BYTES)
            cut = len(data)
            if following:  # cut before the last line, or in a single line before the last character
                cut = data.rfind(b"\n") + 1 or max(len(data.rstrip(_CONTINUATION_BYTES)) - 1, 0) or cut
            yield _decode(data[:cut], file, source.tell() - len(following) - len(data)), not following
            data = data[cut:] + following


def _decode(data: bytes, file: Path, offset: int) -> str:
    """Decode a part of a file that begins at byte ``offset``."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ExselError(
            f"{file} is not UTF-8 text: byte {offset + error.start} is 0x{data[error.start]:02x}; "
            f"convert the file (iconv -f latin1 -t utf-8, for example) or leave it out"
        ) from error


def _read_json_lines(file: Path, text_field: str) -> Iterator[str | None]:
    offset = 0
    with file.open("rb") as lines:
        for number, data in enumerate(lines, start=1):
            line = _decode(data, file, offset)
            offset += len(data)
            if number == 1:
                line = line.removeprefix("\ufeff")
            if line.strip():
                yield _json_text(line, f"{file}, line {number}", text_field)


def _json_text(line: str, place: str, text_field: str) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also at numbers of thousands of digits, and deep nesting
        reason = first_line(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {error.colno}"
        raise ExselError(f"{place} is not JSON: {reason}") from error
    if not isinstance(row, dict):
        raise ExselError(f"{place} is not a JSON object but {line.strip():.40}")
    text = text_of(row, place, text_field)
    if text and "\\u" in line and any("\ud800" <= character <= "\udfff" for character in text):
        raise ExselError(f"{place}: field {text_field!r} holds half a surrogate pair, which is no text")
    return text


def text_of(row: dict[str, Any], place: str, text_field: str) -> str | None:
    """The value of a row's text field, which must be a string or null."""
    _check_field(row, place, text_field)
    value = row[text_field]
    if value is None or isinstance(value, str):
        return value
    raise ExselError(f"{place}: field {text_field!r} holds {value!r:.40}, not text: choose a field with --text-field")


def _check_field(fields: Iterable[str], place: str, text_field: str) -> None:
    if text_field not in fields:
        known = ", ".join(sorted(fields))
        raise ExselError(f"{place} has no field {text_field!r}: choose one of {known} with --text-field")


def _read_parquet(file: Path, text_field: str) -> Iterator[str | None]:
    try:
        with pq.ParquetFile(file) as parquet:
            _check_field(parquet.schema_arrow.names, str(file), text_field)
            kind = parquet.schema_arrow.field(text_field).type
            values = kind.value_type if pa.types.is_dictionary(kind) else kind
            if values not in (pa.string(), pa.large_string(), pa.string_view()):
                raise ExselError(f"{file}: field {text_field!r} holds {kind}, not text: choose one with --text-field")
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=[text_field]):
                yield from batch.column(0).to_pylist()
    except pa.ArrowInvalid as error:
        raise ExselError(f"{file} is not a readable Parquet file: {first_line(error)}") from error
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} of it is 0x{error.object[error.start]:02x}"
        raise ExselError(f"{file}: field {text_field!r} holds a value that is not UTF-8: {byte}") from error
