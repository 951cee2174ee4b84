from __future__ import annotations

import ast
import platform
from pathlib import Path

import pytest

from exsel.data.standard_library import corpus_name, read_standard_library
from exsel.errors import ExselError


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return read_standard_library()


def test_it_holds_the_source_of_known_modules_and_nothing_that_tests_or_was_installed(
    documents: dict[str, str],
) -> None:
    assert ast.parse(documents["ast.py"])
    assert {"argparse.py", "asyncio/events.py", "json/decoder.py"} <= documents.keys()
    for name in documents:
        assert not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(name.split("/")[:-1])
        assert not name.startswith(("pydoc_data/", "_sysconfigdata"))
    assert sum(map(len, documents.values())) > 5_000_000


def test_it_is_sorted_by_path_and_named_by_the_interpreter(documents: dict[str, str]) -> None:
    assert list(documents) == sorted(documents)
    assert corpus_name() == f"Python {platform.python_version()} standard library"


def test_the_declared_encoding_is_used(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'Zoë'\n".encode("latin-1"))
    (tmp_path / "plain.py").write_bytes("name = 'Zoë'\n".encode())
    (tmp_path / "empty.py").touch()
    assert read_standard_library(tmp_path) == {
        "latin.py": "# -*- coding: latin-1 -*-\nname = 'Zoë'\n",
        "plain.py": "name = 'Zoë'\n",
    }


def test_an_interpreter_without_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "only.py").write_text("pass\n")
    with pytest.raises(ExselError, match=r"no standard library source under .*: name a text with --data"):
        read_standard_library(tmp_path)


def test_a_file_that_breaks_its_declared_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_bytes(b"name = '\xff'\n")
    with pytest.raises(ExselError, match=r"broken\.py, of the Python standard library, cannot be read"):
        read_standard_library(tmp_path)
