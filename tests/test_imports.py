"""Imports go one way, in the order of ``docs/architecture.md``, and a name means one thing in the whole tree."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: One operation: as mathematics, for users, as a kernel, and as what is timed.
OPERATIONS = {"attention", "block", "exclude", "inverse_temperature", "project", "project_backward"}
OPERATION_ROOMS = {"reference", "functional", "kernels", "bench", "evidence"}
#: What every module of a kind defines, for one caller: commands, and what is started by ``python -m``.
PROTOCOLS = {"add_arguments", "contenders", "default_config", "main", "run"}
#: ``python -m`` wants this file name.
ENTRY = "__main__"


@functools.cache
def files() -> Mapping[str, Path]:
    """Every module of both packages."""
    found = {}
    for base, package in ((ROOT / "src", "exsel"), (ROOT, "evidence")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(files()[module].read_text(encoding="utf-8"))


def known(name: str) -> str:
    """The module of ``name``, which may be something that a module defines."""
    while name and name not in files():
        name = name.rpartition(".")[0]
    return name


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The modules of both packages that ``module`` imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(known(name) for name in found if name.split(".")[0] in ("exsel", "evidence"))


def room(module: str) -> str:
    """The part of exsel that a module belongs to: a folder or a file; ``evidence`` is one."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "exsel" else package


@functools.cache
def order() -> tuple[str, ...]:
    """The parts of exsel from the lowest to the highest, as the table of ``docs/architecture.md`` has them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return tuple(name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell))


def public(module: str) -> Iterator[str]:
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def test_the_order_names_every_part_of_exsel_once() -> None:
    rooms = {room(name) for name in files() if name.startswith("exsel.")} - {ENTRY}
    assert sorted(order()) == sorted(rooms)


def test_imports_go_one_way() -> None:
    rank = {name: number for number, name in enumerate([*order(), ENTRY])}
    wrong = [
        f"{module} imports {other}"
        for module in files()
        if module.startswith("exsel.")
        for other in sorted(imports(module))
        # The package itself hands on what all its parts define: no part imports it.
        if not other.startswith("exsel.") or rank[room(other)] > rank[room(module)]
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter({module: imports(module) - {module} for module in files()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_a_definition_has_one_meaning() -> None:
    places = defaultdict(set)
    for module in files():
        for name in public(module):
            places[name].add(module)
    assert not unexplained(places)


def test_a_module_name_has_one_meaning() -> None:
    places = defaultdict(set)
    for module in files():
        places[module.rpartition(".")[2]].add(module)
    # A command is named as what it runs.
    named = {
        name: {module for module in found if not module.startswith("exsel.cli.")} for name, found in places.items()
    }
    assert not unexplained(named)


def unexplained(places: Mapping[str, set[str]]) -> list[str]:
    """The names that stand in several modules and are neither one operation's nor a protocol's."""
    return [
        f"{name} in {', '.join(sorted(modules))}"
        for name, modules in sorted(places.items())
        if len(modules) > 1
        and name not in {*PROTOCOLS, ENTRY}
        and not (name in OPERATIONS and {room(module) for module in modules} <= OPERATION_ROOMS)
    ]
