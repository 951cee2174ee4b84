"""The picture of docs/architecture.md, drawn from the imports: ``python -m evidence.architecture``.

A box is a file or folder of ``src/exsel``. A box imports what it has arrows to, directly or by way of other boxes; an
arrow that another way implies is left out, and so are the arrows to ``errors`` and ``files``, which most boxes use.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "exsel"
PICTURE = ROOT / "docs" / "architecture.svg"
GROUND = frozenset({"errors", "files", "version"})
WIDTH, HEIGHT, GAP, ROW = 128, 38, 14, 70

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
.lines { font-size: 11px; fill: #57606a }
rect { fill: #eef3f8; stroke: #8c9bab }
path { fill: none; stroke: #8c9bab }
marker path { fill: #8c9bab; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .lines { fill: #9da7b1 } rect { fill: #22303f; stroke: #6e7b89 }
}"""


def room_of(path: Path) -> str:
    """The folder of ``src/exsel`` in which a file lies, or the file itself."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The modules of exsel that a file imports, wherever in it, as dotted names below ``exsel``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "exsel":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exsel."):
            yield (node.module or "").removeprefix("exsel.")
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("exsel.") for alias in node.names if alias.name.startswith("exsel."))


def read_rooms() -> tuple[dict[str, int], dict[str, set[str]]]:
    """Lines of Python by room, and by room those that it imports."""
    lines: dict[str, int] = {}
    uses: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        room = room_of(path)
        if room.startswith("__"):
            continue
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
        uses.setdefault(room, set()).update(name.partition(".")[0] for name in imported(path))
    return lines, {room: (others - {room}) & lines.keys() for room, others in uses.items()}


def architecture_svg(lines: dict[str, int], uses: dict[str, set[str]]) -> str:
    """The picture as SVG: each room above those that it imports."""
    levels: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in levels:
            levels[room] = max((level(other) + 1 for other in uses[room]), default=0)
        return levels[room]

    def reached(room: str) -> set[str]:
        return uses[room].union(*(reached(other) for other in uses[room]))

    rows: dict[int, list[str]] = {}
    for room in lines:
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
                f'<path marker-end="url(#end)" d="M{x:g} {y:g} C{x:g} {y + 30:g} {u:g} {v - 30:g} {u:g} {v:g}"/>'
            )
    for room, (x, y) in place.items():
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>'
            f'<text x="{x + WIDTH / 2:g}" y="{y + 17:g}">{escape(room)}</text>'
            f'<text class="lines" x="{x + WIDTH / 2:g}" y="{y + 33:g}">{lines[room]:,} lines</text>'
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
    PICTURE.write_text(architecture_svg(*read_rooms()), encoding="utf-8")
