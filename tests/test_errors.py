from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import exsel
from exsel.diagnostics import Diagnosis
from exsel.errors import EXTRAS, MissingPackageError, first_line, require, require_all
from exsel.model_folder import MODEL_TYPE
from exsel.peft import SelectiveAdapterConfig


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
                found.add(re.split("[<>]", requirement)[0].lower())
        return found

    for extra, names in EXTRAS.items():
        assert set(names) == modules(extra)


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\nwrong\nvery wrong")) == "wrong"
    assert first_line(KeyError()) == "KeyError"


def _saved(folder: Path, entry: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE, "exsel": entry}))
    return folder


def _adapter(folder: Path, **values: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "EXSEL_SELECTIVE", **values}))
    return folder


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        (exsel.UpgradeError, lambda _: exsel.upgrade(nn.MultiheadAttention(8, 2))),
        (exsel.UpgradeError, lambda _: exsel.upgrade(nn.Linear(2, 2), exclusive=True)),
        (exsel.UpgradeError, lambda _: exsel.upgrade(nn.MultiheadAttention(8, 2), exclusive={"layers": "last:2"})),
        (exsel.UpgradeError, lambda _: exsel.upgrade(nn.MultiheadAttention(8, 2), selective={"token": "frequency"})),
        (exsel.UpgradeError, lambda _: exsel.support(nn.MultiheadAttention(8, 2), exclusive={"layers": [1]})),
        (exsel.ExselError, lambda _: exsel.upgrade(nn.MultiheadAttention(8, 2), exclusive={"strenght": 1})),
        (exsel.ExselError, lambda _: exsel.SelectiveConfig(position_init=2.0)),
        (exsel.ExselError, lambda _: exsel.diagnose(nn.Linear(2, 2), [torch.zeros(1, 2)])),
        (exsel.ExselError, lambda _: exsel.diagnose(nn.MultiheadAttention(8, 2), [])),
        (exsel.LoadError, lambda _: Diagnosis.from_dict({})),
        (exsel.LoadError, lambda folder: SelectiveAdapterConfig.from_pretrained(_adapter(folder, layers="some"))),
        (exsel.LoadError, lambda folder: SelectiveAdapterConfig.from_pretrained(_adapter(folder, tokne="mlp"))),
        (exsel.LoadError, lambda folder: exsel.from_pretrained(folder, trust_remote_code=True)),
        (exsel.LoadError, lambda folder: exsel.from_pretrained(_saved(folder, {"format": "1"}))),
        (exsel.LoadError, lambda folder: exsel.from_pretrained(_saved(folder, {"format": 10**6}))),
    ],
)
def test_a_mistake_is_one_of_the_librarys_errors(
    kind: type[ValueError], mistake: Callable[[Path], Any], tmp_path: Path
) -> None:
    assert issubclass(kind, exsel.ExselError)
    assert issubclass(kind, ValueError)
    with pytest.raises(kind) as found:
        mistake(tmp_path)
    assert found.type is kind


def test_torchtitan_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchtitan", None)
    with pytest.raises(MissingPackageError, match=r"torchtitan is not installed: pip install 'exsel\[torchtitan\]'"):
        importlib.import_module("exsel.engines.torchtitan")
