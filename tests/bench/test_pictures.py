from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from bench.records import record, row
from exsel.bench.attention import NAMES
from exsel.bench.model_contenders import VARIANTS
from exsel.bench.pictures import panels, write_pictures
from exsel.report.looks import PROPERTIES, looks_of_labels


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


def test_contenders_of_one_picture_look_different() -> None:
    for names in (NAMES, VARIANTS):
        looks = looks_of_labels([names])
        assert len({looks[name][1:] for name in names}) == len(names)


def test_lines_with_their_quartiles() -> None:
    rows = [row for row in record()["rows"] if row["passes"]]
    ((exclusive, both),) = panels("attention", rows).charts
    assert [curve.label for curve in exclusive.curves] == ["eager normalize", "compiled normalize", "exsel sdpa"]
    ours = exclusive.curves[-1]
    assert (ours.x, ours.y) == ((2048, 4096), (1.03, 1.01))
    assert (ours.low, ours.high) == ((1.02, 1.0), (1.05, 1.03))
    assert [tick.text for tick in both.x_ticks] == ["2k", "4k"]
    assert exclusive.references[0].y == 1
