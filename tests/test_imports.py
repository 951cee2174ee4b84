"""Imports go one way, in the order of ``docs/architecture.md``, and a name means one thing in the whole tree."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import pytest

from evidence.architecture import PICTURE, ROOT, architecture_svg, imports, module_paths, room_of, rooms, syntax_tree

#: One operation: as mathematics, for users, as a kernel, and as what is timed.
OPERATIONS = {"attention", "block", "exclude", "inverse_temperature", "project", "project_backward", "scale_heads"}
OPERATION_ROOMS = {"reference", "functional", "kernels", "standalone", "bench", "evidence"}
#: What every module of a kind defines, for one caller: commands, and what is started by ``python -m``.
PROTOCOLS = {"add_arguments", "contenders", "default_config", "main", "run"}
#: ``python -m`` wants this file name.
ENTRY = "__main__"


@functools.cache
def order() -> tuple[str, ...]:
    """The parts of exsel from the lowest to the highest, as the table of ``docs/architecture.md`` has them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return tuple(name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell))


def public(module: str) -> Iterator[str]:
    for node in syntax_tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def test_the_order_names_every_part_of_exsel_once() -> None:
    assert sorted(order()) == sorted(rooms())


def test_the_picture_shows_these_imports() -> None:
    assert PICTURE.read_text(encoding="utf-8") == architecture_svg(rooms())


def test_imports_go_one_way() -> None:
    rank = {name: number for number, name in enumerate([*order(), ENTRY])}
    wrong = [
        f"{module} imports {other}"
        for module in module_paths()
        if module.startswith("exsel.")
        for other in sorted(imports(module))
        # The package itself hands on what all its parts define: no part imports it.
        if not other.startswith("exsel.") or rank[room_of(other)] > rank[room_of(module)]
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter({module: imports(module) - {module} for module in module_paths()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_a_definition_has_one_meaning() -> None:
    places = defaultdict(set)
    for module in module_paths():
        for name in public(module):
            places[name].add(module)
    assert not unexplained(places)


def test_a_module_name_has_one_meaning() -> None:
    places = defaultdict(set)
    for module in module_paths():
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
        and not (name in OPERATIONS and {room_of(module) for module in modules} <= OPERATION_ROOMS)
    ]
