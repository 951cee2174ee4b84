from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from bench.records import record, row
from exsel.bench.attention import NAMES
from exsel.bench.picture import write_pictures
from exsel.bench.variants import VARIANTS
from exsel.report.looks import _KNOWN, PROPERTIES
from exsel.variants import BASELINE


def test_svg_and_png(tmp_path: Path) -> None:
    written = write_pictures(record()["rows"], tmp_path)
    assert sorted(path.name for path in written) == ["attention.png", "attention.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.png", "attention.svg"]
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "attention.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"exsel sdpa", "eager normalize", "tokens", "2k", "4k", "1.4b, exclusive"} <= words
    assert "compiled dot" not in words  # it was not measured: no line, no entry


def test_it_follows_light_and_dark(tmp_path: Path) -> None:
    write_pictures(record()["rows"], tmp_path)
    text = (tmp_path / "attention.svg").read_text()
    assert "prefers-color-scheme: dark" in text
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert used <= set(re.findall(r"(--[\w-]+):", text))
    assert not re.search("|".join(PROPERTIES), text)


def test_nothing_measured_no_picture(tmp_path: Path) -> None:
    assert write_pictures([], tmp_path) == []
    assert write_pictures([row("stock", "baseline", 1.0), row("exsel sdpa", "exclusive", None)], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_every_contender_has_a_look_of_its_own() -> None:
    for names in (NAMES, [name for name in VARIANTS if name != BASELINE]):
        assert len({_KNOWN[name] for name in names}) == len(names)
