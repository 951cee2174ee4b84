"""Put definitions of exsel, and all of exsel that they use, into one file of Python that imports no exsel."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PACKAGE = "exsel"
_HOME = Path(__file__).parents[2]
#: Where a definition is: its module and its name there.
Place = tuple[str, str]


@dataclass(frozen=True)
class _Source:
    """A module's source: the statement that defines each name, and where each imported name comes from."""

    text: str
    statements: dict[str, ast.stmt] = field(default_factory=dict)
    own: dict[str, Place] = field(default_factory=dict)  # imported from exsel; a whole module has no name there
    foreign: dict[str, str] = field(default_factory=dict)  # from elsewhere, each with its import statement

    def segment(self, statement: ast.stmt, renamed: Mapping[ast.expr, str]) -> str:
        """The text of a statement with its decorators and the comment above it, some names in it replaced."""
        lines = self.text.splitlines(keepends=True)
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", ()))]) - 1
        assert statement.end_lineno is not None
        for node, name in sorted(renamed.items(), key=lambda pair: (pair[0].lineno, pair[0].col_offset), reverse=True):
            assert node.lineno == node.end_lineno
            line = lines[node.lineno - 1].encode()
            lines[node.lineno - 1] = (line[: node.col_offset] + name.encode() + line[node.end_col_offset :]).decode()
        while first and lines[first - 1].startswith("#"):
            first -= 1
        return "".join(lines[first : statement.end_lineno]).rstrip()


def bundle(roots: Sequence[Place], stand_ins: str) -> str:
    """The definitions at ``roots``, and what they use, as the text of one module.

    A module of exsel is read, never imported. Definitions keep their names, texts and comments, in the order of their
    modules. Those of the module ``stand_ins`` replace those of the same name anywhere else in exsel.
    """
    wanted = [_resolve(place, stand_ins) for place in roots]
    found: dict[Place, str] = {}
    foreign: dict[str, str] = {}
    uses: dict[str, dict[str, None]] = {}  # by module, those whose definitions it uses
    for place in wanted:
        if place in found:
            continue
        module, name = place
        source = _read(module)
        statement = source.statements[name]
        renamed: dict[ast.expr, str] = {}
        for node, local in _used(statement, source):
            if local in source.foreign:
                foreign[local] = source.foreign[local]
                continue
            used = _resolve(source.own.get(local, (module, local)), stand_ins, node)
            wanted.append(used)
            if used[0] != module:
                uses.setdefault(module, {})[used[0]] = None
            # ``reference.exclude`` and an import under another name become the definition's own name.
            if not isinstance(node, ast.Name) or used[1] != local:
                renamed[node] = used[1]
        uses.setdefault(module, {})
        found[place] = source.segment(statement, renamed)
    names = [*(name for _, name in found), *foreign]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        homes = [home for home, name in found if name == twice[0]]
        raise ValueError(f"{twice[0]} has two meanings in one file: {homes}")
    modules = graphlib.TopologicalSorter(dict(sorted(uses.items()))).static_order()
    texts = [found[module, name] for module in modules for name in _read(module).statements if (module, name) in found]
    imports = "\n".join(["from __future__ import annotations", "", *import_statements(foreign)])
    return "\n\n\n".join([imports, *texts]) + "\n"


def _resolve(place: Place, stand_ins: str, node: ast.expr | None = None) -> Place:
    """Where the definition is that is imported from ``place``, or of a module there the attribute that is used."""
    module, name = place
    if not name:
        assert isinstance(node, ast.Attribute), f"{module} is used as a whole"
        name = node.attr
    replaced = _read(stand_ins)
    if name in replaced.statements or replaced.own.get(name, (module, ""))[0] != module:
        module = stand_ins
    source = _read(module)
    return (module, name) if name in source.statements else _resolve(source.own[name], stand_ins)


@functools.cache
def _read(module: str) -> _Source:
    path = _path(module)
    text = (path if path.is_file() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8")
    source = _Source(text)
    for statement in ast.parse(text).body:
        match statement:
            case ast.ImportFrom(module=str(home), names=names) if home.split(".")[0] == _PACKAGE:
                for alias in names:
                    path = _path(f"{home}.{alias.name}")
                    is_module = path.is_file() or path.with_suffix("").is_dir()
                    place = (f"{home}.{alias.name}", "") if is_module else (home, alias.name)
                    source.own[alias.asname or alias.name] = place
            case ast.ImportFrom(module=str(home), names=names) if home != "__future__":
                for alias in names:
                    source.foreign[alias.asname or alias.name] = f"from {home} import {ast.unparse(alias)}"
            case ast.Import(names=names):
                for alias in names:
                    source.foreign[alias.asname or alias.name.split(".")[0]] = f"import {ast.unparse(alias)}"
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                source.statements[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                source.statements[name] = statement
    return source


def _path(module: str) -> Path:
    """The file of a module that is no package."""
    return _HOME.joinpath(*module.split(".")).with_suffix(".py")


def _used(statement: ast.stmt, source: _Source) -> Iterator[tuple[ast.expr, str]]:
    """The expressions in ``statement`` that are names of ``source``, or attributes of modules that it imports."""
    modules = {local for local, (_, name) in source.own.items() if not name}
    names = source.statements.keys() | source.own.keys() | source.foreign.keys()
    for node in ast.walk(statement):
        match node:
            case ast.Attribute(value=ast.Name(id=local)) if local in modules:
                yield node, local
            case ast.Name(id=local) if local in names - modules:
                yield node, local


def import_statements(names: Mapping[str, str]) -> list[str]:
    """The statements of imports, those of one module together, of the statements that import one name each."""
    members: dict[str, list[str]] = {}
    for line in sorted({*names.values()}):
        home, _, name = line.partition(" import ")
        members.setdefault(home, []).append(name)
    order = sorted(members, key=lambda home: (home.startswith("from "), home))
    return [f"{home} import {', '.join(members[home])}" if home.startswith("from ") else home for home in order]
