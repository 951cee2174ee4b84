from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from exsel.report.charts import Chart, Curve, HeatMap, Panels
from exsel.report.drawing import _log_ticks, file_size
from exsel.report.looks import PROPERTIES, looks_of, looks_of_labels
from exsel.report.picture import SUFFIXES, page_svg, write_picture

NAMES = tuple(f"a variant with a long name, number {index} of those that were trained" for index in range(12))
LENGTHS = (512.0, 1024.0, 2048.0, 16384.0)
RATES = (1e-4, 2e-4, 6e-4, 3e-3)


def curve(label: str, x: tuple[float, ...], *, style: str = "line", band: float | None = None) -> Curve:
    y = tuple(3 - 0.1 * index for index in range(len(x)))
    low, high = (None, None) if band is None else (tuple(v - band for v in y), tuple(v + band for v in y))
    return Curve(label=label, x=x, y=y, low=low, high=high, style=style)  # type: ignore[arg-type]


LINES = Chart(
    name="lines",
    title="Loss by length",
    x_label="tokens a sequence",
    y_label="loss",
    curves=(
        curve("baseline", LENGTHS, band=0.1),
        curve("exclusive", LENGTHS, band=0.1),
        curve("published", LENGTHS, style="dashed"),
        curve("single runs", LENGTHS, style="points"),
    ),
    log_x=True,
    caption="It falls.",
)
RATE_LINES = replace(LINES, name="rates", x_label="learning rate", curves=(curve("exclusive", RATES),))
CATEGORIES = Chart(
    name="categories",
    title="Loss by variant, of models that were all trained on the same text in the same order, with the same rate",
    x_label="",
    y_label="difference",
    curves=(curve("loss", tuple(map(float, range(12))), style="points", band=2.0),),
    categories=NAMES,
)
GROUPED = replace(
    CATEGORIES,
    name="grouped",
    curves=(*CATEGORIES.curves, curve("exclusive", (0.0, 3.0)), curve("bound", (0.0, 11.0), style="dashed")),
)
BOTH_LOG = replace(
    LINES, name="log", log_y=True, curves=(Curve(label="norm", x=(1e-8, 1e-4, 0.1), y=(1.0, 300.0, 20000.0)),)
)
CHARTS = (LINES, RATE_LINES, CATEGORIES, GROUPED, BOTH_LOG)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("charts")
    looks = looks_of(CHARTS)
    for chart in CHARTS:
        write_picture(chart, folder / f"{chart.name}.svg", looks)
    return {chart.name: (folder / f"{chart.name}.svg").read_text(encoding="utf-8") for chart in CHARTS}


def texts(source: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(source).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_each_is_a_whole_svg_in_the_readers_colours(drawn: dict[str, str], chart: Chart) -> None:
    source = drawn[chart.name]
    root = ElementTree.fromstring(source)
    assert (root.attrib["width"], root.attrib["height"]) == tuple(map(str, file_size(chart)))
    assert root.attrib["aria-label"].startswith(chart.title)
    assert "prefers-color-scheme: dark" in source
    assert not any(stand_in in source for stand_in in PROPERTIES)
    words = " ".join(texts(source))
    assert chart.y_label in words
    assert all(word in words for word in chart.title.split())


def test_ticks_of_lengths_and_of_learning_rates(drawn: dict[str, str]) -> None:
    assert {"512", "1k", "2k", "16k"} <= set(texts(drawn["lines"]))
    assert {"1e−4", "2e−4", "6e−4", "3e−3"} <= set(texts(drawn["rates"]))
    assert {"1e−8", "1e−4", "0.1"} <= set(texts(drawn["log"]))


def test_every_category_is_named_and_has_room(drawn: dict[str, str]) -> None:
    words = " ".join(texts(drawn["categories"]))
    assert all(name in words for name in NAMES)
    assert file_size(CATEGORIES)[1] > file_size(replace(CATEGORIES, categories=NAMES[:4]))[1]
    assert file_size(GROUPED)[1] > file_size(CATEGORIES)[1]


def test_the_legend_names_every_curve_once(drawn: dict[str, str]) -> None:
    for label in ("baseline", "exclusive", "published", "single runs"):
        assert texts(drawn["lines"]).count(label) == 1
    # One curve over categories needs no legend; a second one does.
    assert "loss" not in texts(drawn["categories"])
    assert {"loss", "exclusive", "bound"} <= set(texts(drawn["grouped"]))


def test_a_label_looks_the_same_in_every_chart(drawn: dict[str, str]) -> None:
    by_chart = [[curve.label for curve in chart.curves] for chart in CHARTS]
    together = looks_of_labels(by_chart)
    assert together["exclusive"] == looks_of_labels([["exclusive"]])["exclusive"]
    assert together["single runs"] == looks_of_labels([["single runs"]])["single runs"]
    assert together["baseline"].slot == 0
    colour = together["exclusive"].css_colour
    assert all(f"var({colour})" in drawn[name] for name in ("lines", "rates", "grouped"))


def test_labels_of_one_chart_differ() -> None:
    labels = [f"variant {index}" for index in range(8)]
    assert len({look.slot for look in looks_of_labels([labels]).values()}) == 8
    many = [f"variant {index}" for index in range(40)]
    assert len({(look.slot, look.marker) for look in looks_of_labels([many]).values()}) == 40
    # Also where another chart has used every colour before.
    apart = looks_of_labels([many, ["a", "b", "c"]])
    assert len({apart[label].slot for label in ("a", "b", "c")}) == 3


def test_references_are_in_ink() -> None:
    assert {looks_of_labels([[label]])[label].slot for label in ("published", "Published SA", "bound of Lemma 1")} == {
        None
    }
    looks = looks_of_labels([["bound, ρ = 0", "bound, ρ = 0.5", "loss"]]).values()
    assert len({(look.slot, look.marker) for look in looks}) == 3


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for suffix in SUFFIXES:
            write_picture(LINES, tmp_path / name / f"lines{suffix}")
    for suffix, start in zip(SUFFIXES, (b"<svg xmlns=", b"\x89PNG", b"%PDF"), strict=True):
        first, second = ((tmp_path / name / f"lines{suffix}").read_bytes() for name in ("first", "second"))
        assert first == second
        assert first.startswith(start)
    assert len(list((tmp_path / "first").iterdir())) == len(SUFFIXES)


def test_ticks_of_a_logarithmic_axis_do_not_collide() -> None:
    ticks = _log_ticks(0.97, 31.0)
    assert 1.0 in ticks
    assert all(later / earlier > 1.2 for earlier, later in itertools.pairwise(ticks))
    assert _log_ticks(0.97, 1.12) == [1.0, 1.05, 1.1]


def test_a_heat_map_shows_numbers_where_there_is_room_and_a_stroke_for_what_is_missing() -> None:
    few = HeatMap(
        name="few", title="Few", x_label="layer", y_label="head", columns=("0", "1"), rows=("a",), values=((0.5, None),)
    )
    words = texts(page_svg(few, {}))
    assert {"0.50", "layer", "head", "a"} <= set(words)
    many = replace(few, columns=tuple(map(str, range(40))), values=((0.25,) * 40,))
    words = texts(page_svg(many, {}))
    assert "0.25" in words  # at the deep end of the colour scale
    assert words.count("0.25") == 1
    assert "4" in words
    assert "5" not in words
    assert "50%" in texts(page_svg(replace(few, as_percent=True, scale=1.0), {}))


def test_panels_share_their_axes_and_one_legend(tmp_path: Path) -> None:
    panels = Panels(name="panels", title="Panels", charts=((LINES, LINES), (LINES, LINES)))
    write_picture(panels, tmp_path / "panels.svg")
    words = texts((tmp_path / "panels.svg").read_text())
    assert words.count("tokens a sequence") == words.count("loss") == 2
    assert words.count("exclusive") == 1
    assert words.count("Loss by length") == 4


def test_a_gap_and_an_unnamed_curve(tmp_path: Path) -> None:
    y = (1.0, math.nan, 3.0)
    alone = Curve(label="", x=(0.0, 1.0, 2.0), y=y, low=y, high=y)
    chart = replace(LINES, curves=(alone, replace(alone, style="range"), replace(alone, style="thin")), log_x=False)
    write_picture(chart, tmp_path / "gap.svg")
    assert "NaN" not in (tmp_path / "gap.svg").read_text()
