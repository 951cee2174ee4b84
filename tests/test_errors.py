from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from exsel.errors import EXTRAS, first_line, require, require_all


def test_what_is_installed_passes() -> None:
    assert require("json", "train").__name__ == "json"
    for extra in EXTRAS:
        require_all(extra)


def test_what_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"no_such_module is not installed: pip install 'exsel\[report\]'"):
        require("no_such_module", "report")
    monkeypatch.setitem(EXTRAS, "report", ("no_such_module",))  # type: ignore[misc]
    with pytest.raises(ImportError, match=r"no_such_module is not installed: pip install 'exsel\[report\]'"):
        require_all("report")


def test_a_broken_module_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        require("broken_module", "report")


def test_the_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]

    def modules(extra: str) -> set[str]:
        found = set()
        for requirement in declared[extra]:
            if requirement.startswith("exsel["):
                for inner in requirement.removeprefix("exsel[").rstrip("]").split(","):
                    found |= modules(inner)
            else:
                found.add(requirement.split(">")[0].lower())
        return found

    for extra, names in EXTRAS.items():
        assert set(names) == modules(extra)


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\nwrong\nvery wrong")) == "wrong"
    assert first_line(KeyError()) == "KeyError"
