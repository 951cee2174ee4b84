"""What imports what in exsel, and the picture of it in docs/architecture.md: ``python -m evidence.architecture``.

A box is a file or folder of ``src/exsel``. A box imports what it has arrows to, directly or by way of other boxes; an
arrow that another way implies is left out, and so are the arrows to ``errors`` and ``files``, which most boxes use.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
GROUND = frozenset({"errors", "files", "version"})
WIDTH, HEIGHT, GAP, ROW = 128, 28, 14, 60

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
rect { fill: #eef3f8; stroke: #8c9bab }
path { fill: none; stroke: #8c9bab }
marker path { fill: #8c9bab; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } rect { fill: #22303f; stroke: #6e7b89 }
}"""


@functools.cache
def module_paths() -> Mapping[str, Path]:
    """Every module of both packages, by its dotted name."""
    found = {}
    for base, package in ((ROOT / "src", "exsel"), (ROOT, "evidence")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def syntax_tree(module: str) -> ast.Module:
    """The parsed source of a module."""
    return ast.parse(module_paths()[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The modules of both packages that ``module`` imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(syntax_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(_module_of(name) for name in found if name.split(".")[0] in ("exsel", "evidence"))


def _module_of(name: str) -> str:
    """The module of ``name``, which may be something that a module defines."""
    while name and name not in module_paths():
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    """The part of exsel that a module belongs to: a folder or a file; ``evidence`` is one."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "exsel" else package


def rooms() -> dict[str, set[str]]:
    """The parts of exsel, each with the others that it imports."""
    uses: dict[str, set[str]] = {}
    for module in module_paths():
        if module.startswith("exsel.") and room_of(module) != "__main__":
            uses.setdefault(room_of(module), set()).update(map(room_of, imports(module)))
    return {room: others - {room} for room, others in uses.items()}


def architecture_svg(uses: Mapping[str, set[str]]) -> str:
    """The picture as SVG: each room above those that it imports."""
    levels: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in levels:
            levels[room] = max((level(other) + 1 for other in uses[room]), default=0)
        return levels[room]

    def reached(room: str) -> set[str]:
        return uses[room].union(*(reached(other) for other in uses[room]))

    rows: dict[int, list[str]] = {}
    for room in uses:
        rows.setdefault(level(room), []).append(room)
    broadest = max(map(len, rows.values()))
    width, top = broadest * (WIDTH + GAP) + GAP, max(rows)
    place = {
        room: ((width - len(row) * (WIDTH + GAP) + GAP) / 2 + number * (WIDTH + GAP), (top - floor) * ROW + GAP)
        for floor, row in rows.items()
        for number, room in enumerate(row)
    }
    parts = []
    for room, others in uses.items():
        direct = others - GROUND - set().union(*(reached(other) for other in others))
        for other in sorted(direct):
            (x, y), (u, v) = place[room], place[other]
            x, y, u = x + WIDTH / 2, y + HEIGHT, u + WIDTH / 2
            parts.append(
                f'<path marker-end="url(#end)" d="M{x:g} {y:g} C{x:g} {y + 26:g} {u:g} {v - 26:g} {u:g} {v:g}"/>'
            )
    for room, (x, y) in place.items():
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>'
            f'<text x="{x + WIDTH / 2:g}" y="{y + 18:g}">{escape(room)}</text>'
        )
    height = (top + 1) * ROW - ROW + HEIGHT + 2 * GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
            "<title>What imports what in exsel</title>",
            f"<style>{STYLE}</style>",
            '<marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z"/></marker>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(architecture_svg(rooms()), encoding="utf-8")
