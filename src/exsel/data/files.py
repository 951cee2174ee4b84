"""Local data: find the files that a ``--data`` value names, and read the documents in them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from exsel.data.documents import FEATURES, Row, rows_of, rows_to_dataset
from exsel.data.progress import no_progress_bars
from exsel.errors import ExselError, first_line

TEXT_SUFFIXES = frozenset(
    {".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu"}
    | {".java", ".js", ".ts", ".go", ".rs", ".sh", ".sql", ".lean"}
)
JSON_LINES, PARQUET = ".jsonl", ".parquet"
# Named as data often enough that a message about the suffix helps more than one about a missing data set.
_FAMILIAR_SUFFIXES = frozenset(
    {".json", ".csv", ".tsv", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".pdf", ".docx"}
)
# Files of more than this together go through a memory-mapped Arrow file in the cache folder of `datasets`.
IN_MEMORY_BYTES = 256 * 2**20
_READ_BYTES = 2**20
_WRITE_ROWS = 100
_PARQUET_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def is_local(spec: str) -> bool:
    """Whether a ``--data`` value names something on this machine: it exists, or is spelled as a path or a glob."""
    path = Path(spec).expanduser()
    return (
        path.exists()
        or glob.has_magic(spec)
        or spec.startswith((".", "/", "~"))
        or _kind(path) is not None
        or path.suffix.lower() in _FAMILIAR_SUFFIXES
    )


def find_files(specs: Sequence[str]) -> list[Path]:
    """List the files that the values name: files as they are, folders and globs expanded and sorted.

    A folder is searched with its subfolders for files with a supported suffix (hidden ones left out); a file that
    is named itself may also have no suffix and is then text. A file named twice counts once.

    Raises:
        ExselError: something is missing, empty, of an unsupported type, or a folder holds nothing to read.
    """
    found: dict[Path, Path] = {}
    for spec in specs:
        for path in _matches(spec):
            for file in _files_in(path) if path.is_dir() else [_checked(path)]:
                found.setdefault(file.resolve(), file)
    return list(found.values())


def load_files(files: Sequence[Path], text_field: str) -> Dataset:
    """Read the documents of files (rows as in `exsel.data.documents`), memory-mapped if the files are large.

    Raises:
        ExselError: see `read_rows`; also when no document holds any text.
    """
    # Before all else, since `datasets` cannot write a data set without rows.
    if next(read_rows(files, text_field), None) is None:
        raise ExselError(f"no text in {', '.join(str(file) for file in files[:3])}: every document is empty")
    if sum(file.stat().st_size for file in files) <= IN_MEMORY_BYTES:
        return rows_to_dataset(read_rows(files, text_field))
    return _load_memory_mapped(files, text_field)


def read_rows(files: Sequence[Path], text_field: str) -> Iterator[Row]:
    """Read the documents of files in order: a text file is one, ``.jsonl`` and ``.parquet`` hold one a row.

    Empty documents and rows with a null are left out.

    Raises:
        ExselError: a file cannot be read or decoded (names the byte), lacks the field (names those it has), or
            holds something other than text in it.
    """
    for file in files:
        try:
            if _kind(file) == "jsonl":
                yield from _rows_of_documents(_read_json_lines(file, text_field))
            elif _kind(file) == "parquet":
                yield from _rows_of_documents(_read_parquet(file, text_field))
            else:
                yield from _read_text(file)
        except OSError as error:
            raise ExselError(f"{file} cannot be read: {error.strerror or error}") from error


def _matches(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    if path.exists():
        return [path]
    if not glob.has_magic(spec):
        raise ExselError(f"no such file or folder: {spec}")
    # Path.glob takes no absolute patterns.
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matches:
        raise ExselError(f"nothing matches {spec}")
    # `**` matches folders and their files: the files suffice, unless there are folders alone.
    return [match for match in matches if match.is_file()] or matches


def _files_in(folder: Path) -> list[Path]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix
        and _kind(file)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise ExselError(f"{folder} holds no text, .jsonl or .parquet file")
    return files


def _checked(file: Path) -> Path:
    if _kind(file) is None:
        raise ExselError(
            f"{file}: files of type {file.suffix} are not supported; use .jsonl, .parquet or text ({_some_suffixes()})"
        )
    if file.stat().st_size == 0:
        raise ExselError(f"{file} is empty")
    return file


def _some_suffixes() -> str:
    return ", ".join([*sorted(TEXT_SUFFIXES, key=lambda suffix: (suffix != ".txt", suffix))[:6], "…"])


def _kind(file: Path) -> str | None:
    """The reader for a file, by its suffix; `None` where there is none. No suffix means text, if the file exists."""
    suffix = file.suffix.lower()
    if suffix in (JSON_LINES, PARQUET):
        return suffix[1:]
    return "text" if suffix in TEXT_SUFFIXES or (not suffix and file.is_file()) else None


def _decode(data: bytes, file: Path, offset: int) -> str:
    """Decode a part of a file that begins at byte ``offset``."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ExselError(
            f"{file} is not UTF-8 text: byte {offset + error.start} is 0x{data[error.start]:02x}; "
            f"convert the file (iconv -f latin1 -t utf-8, for example) or leave it out"
        ) from error


def _rows_of_documents(documents: Iterator[str | None]) -> Iterator[Row]:
    for document in documents:
        if document:
            yield from rows_of(document)


def _read_text(file: Path) -> Iterator[Row]:
    with file.open("rb") as source:
        data = source.read(_READ_BYTES)
        offset = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
        data = data[offset:]
        while following := source.read(_READ_BYTES):
            cut = _last_start(data)
            yield _decode(data[:cut], file, offset), False
            data = data[cut:] + following
            offset += cut
    if data:
        yield _decode(data, file, offset), True


def _last_start(data: bytes) -> int:
    """Where the last line begins that was begun, or in a single line the last character: never at 0."""
    newline = data.rfind(b"\n")
    if newline >= 0:
        return newline + 1
    start = len(data) - 1
    while start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    return start or len(data)


def _read_json_lines(file: Path, text_field: str) -> Iterator[str | None]:
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            start = len(_BYTE_ORDER_MARK) if number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
            decoded = _decode(line[start:], file, offset + start)
            offset += len(line)
            if not decoded.isspace():
                yield _json_text(decoded, f"{file}, line {number}", text_field)


def _json_text(line: str, place: str, text_field: str) -> str | None:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Among them: a number of thousands of digits, and brackets nested by the thousand.
        reason = first_line(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {error.colno}"
        raise ExselError(f"{place} is not JSON: {reason}") from error
    if not isinstance(row, dict):
        raise ExselError(f"{place} is not a JSON object but {_type_name(row)}")
    if text_field not in row:
        raise missing_field(place, text_field, list(row))
    text = check_text(row[text_field], place, text_field)
    if text is not None and "\\u" in line:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ExselError(f"{place}: field {text_field!r} holds half a surrogate pair, which is no text") from error
    return text


def _read_parquet(file: Path, text_field: str) -> Iterator[str | None]:
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            if text_field not in schema.names:
                raise missing_field(str(file), text_field, schema.names)
            kind = schema.field(text_field).type
            values = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)):
                raise ExselError(f"{file}: field {text_field!r} holds {kind}, not text: choose one with --text-field")
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=[text_field]):
                yield from batch.column(0).to_pylist()
    except pa.ArrowInvalid as error:
        raise ExselError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    except UnicodeDecodeError as error:
        raise ExselError(
            f"{file}: field {text_field!r} holds a value that is not UTF-8: byte {error.start} of it is "
            f"0x{error.object[error.start]:02x}"
        ) from error


def missing_field(place: str, text_field: str, fields: Sequence[str]) -> ExselError:
    """The error for a row or file without the text field: names the fields there are."""
    return ExselError(
        f"{place} has no field {text_field!r}: choose one of {', '.join(sorted(fields))} with --text-field"
    )


def check_text(value: object, place: str, text_field: str) -> str | None:
    """Pass on the value of a text field, which must be a string or null."""
    if value is None or isinstance(value, str):
        return value
    raise ExselError(
        f"{place}: field {text_field!r} holds {_type_name(value)}, not text: choose a field with --text-field"
    )


def _type_name(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return names.get(type(value), "null" if value is None else f"a value of type {type(value).__name__}")


def _load_memory_mapped(files: Sequence[Path], text_field: str) -> Dataset:
    # `datasets` finds an earlier result by these arguments alone: the state of each file must be among them.
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    try:
        with no_progress_bars():
            return Dataset.from_generator(
                _examples,
                features=FEATURES,
                # A tuple, since `datasets` takes a list here for shards.
                gen_kwargs={"files": tuple(states), "text_field": text_field},
                writer_batch_size=_WRITE_ROWS,
            )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ExselError):
            raise error.__cause__ from None
        raise


def _examples(files: Sequence[tuple[str, int, int]], text_field: str) -> Iterator[dict[str, Any]]:
    for text, ends in read_rows([Path(path) for path, _, _ in files], text_field):
        yield {"text": text, "ends": ends}
