from __future__ import annotations

import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from exsel.report import headline, headline_note, render_report, write_report
from exsel.report.charts import Chart
from exsel.report.comparison import answer_rows
from exsel.report.comparison_charts import comparison_charts

Make = Callable[..., dict[str, Any]]


class Reader(HTMLParser):
    """Collects ids, references to other resources, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "xlink:href", "src", "srcset", "data", "action", "poster"}:
                self.targets.append((tag, value or ""))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_nothing_is_loaded_from_elsewhere(make_results: Make) -> None:
    page = render_report(make_results(rates=(1e-3, 3e-3)))
    reader = Reader(page)
    loaded = {target for tag, target in reader.targets if tag != "a"}
    assert loaded
    assert all(target.startswith("#") or target == "data:," for target in loaded)
    assert re.findall(r"url\(\s*['\"]?(?!#)", page) == []
    assert "@import" not in page
    assert not {"script", "iframe", "object", "embed", "img"} & set(reader.tags)
    links = {target for tag, target in reader.targets if tag == "a" and not target.startswith("#")}
    assert links == {"https://arxiv.org/abs/2603.09078", "https://arxiv.org/abs/2411.12892"}


def test_ids_are_unique_and_every_reference_is_met(make_results: Make) -> None:
    page = render_report(make_results(seeds=(0, 1), rates=(1e-3, 3e-3)))
    reader = Reader(page)
    assert len(reader.ids) == len(set(reader.ids))
    local = [target[1:] for _, target in reader.targets if target.startswith("#")]
    local += re.findall(r"url\(#([^)]+)\)", page)
    local += [
        word for value in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', page) for word in value.split()
    ]
    assert set(local) <= set(reader.ids)


def test_colours_come_from_the_page(make_results: Make) -> None:
    page = render_report(make_results())
    figures = re.findall(r'<svg viewBox="0 0 [^>]*role="img".*?</svg>', page, re.DOTALL)
    assert len(figures) == 6
    for figure in figures:
        assert "var(--series-1)" in figure
        assert re.findall(r"#[0-9a-f]{6}\b(?!\))", re.sub(r'"#[^"]*"', "", figure)) == []
        assert "<style" not in figure
        assert "<metadata" not in figure


def test_the_page_is_the_same_every_time(make_results: Make) -> None:
    assert render_report(make_results()) == render_report(make_results())


def test_one_seed_is_said_plainly(make_results: Make) -> None:
    one = Reader(render_report(make_results())).text
    assert "One seed: no interval, and no claim" in one
    assert headline(make_results()) in one
    assert headline_note(make_results()) in one
    three = Reader(render_report(make_results(seeds=(0, 1, 2)))).text
    assert "no interval" not in three
    assert "95% intervals over 3 seeds (Student's t)" in three


def test_bands_are_of_three_seeds_at_least_and_what_is_cut_is_said(make_results: Make) -> None:
    """On either side an interval of two seeds is 6.4 times as long as their distance: it would fill the frame."""

    def position_charts(seeds: int) -> list[Chart]:
        charts = comparison_charts(make_results(seeds=tuple(range(seeds)), noise=0.04))["position"]
        return [chart for chart in charts if chart.name.startswith("position")]

    for chart in position_charts(1):
        assert not any(curve.low for curve in chart.curves)
        assert chart.caption == "Dotted: the trained length."
    for chart in position_charts(2):
        assert not any(curve.low for curve in chart.curves)
        assert "Means of 2 seeds, without intervals" in chart.caption
    for chart in position_charts(3):
        assert all(curve.low for curve in chart.curves if curve.label != "baseline")
        ends = [end for curve in chart.curves for end in (*(curve.low or ()), *(curve.high or ()))]
        assert chart.y_range is not None
        is_cut = min(ends) < chart.y_range[0] or max(ends) > chart.y_range[1]
        assert "Bands: 95% intervals" in chart.caption
        assert ("outside the frame" in chart.caption) == is_cut


def test_answers_have_intervals_where_seeds_differ(make_results: Make) -> None:
    results = make_results(seeds=(0, 1), variants=("baseline", "exclusive"))
    for run in results["runs"]:
        luck = run["seed"] + (run["variant"] == "exclusive")
        asked = {"perplexity": 4e8 - 1e8 * luck, "acc": 0.25, "loss": 2 + 0.01 * luck}
        run["answers"] = [{"task": "words", "measure": name, "value": value} for name, value in asked.items()]
    shown = {
        (str(row["Variant"]), str(row["Measure"])): (str(row["Value"]), str(row["Difference to the baseline"]))
        for row in answer_rows(results)
    }
    assert shown["exclusive", "acc"] == ("0.2500 (in each seed)", "0.0000 (in each seed)")
    assert shown["baseline", "perplexity"] == ("350M ± 635M", "–")
    assert shown["exclusive", "perplexity"][1] == "−100M (in each seed)"
    assert shown["exclusive", "loss"][0] == "2.0150 ± 0.0635"
    assert 'data-heading="Difference to the baseline"' in render_report(results)


def test_a_sweep_has_its_own_figure(make_results: Make) -> None:
    assert 'id="figure-sweep"' in render_report(make_results(rates=(1e-3, 3e-3)))
    assert 'id="figure-sweep"' not in render_report(make_results())


def test_the_sections_follow_the_questions(make_results: Make) -> None:
    page = render_report(
        make_results(seeds=(0, 1), rates=(1e-3, 3e-3), texts=("news",), variants=("baseline", "constant"))
    )
    found = re.findall(r"<h2[^>]*>(.*?)</h2>|id=\"figure-([\w-]+)\"", page)
    assert [heading or figure for heading, figure in found] == [
        *("Does it help?", "loss-tokens"),
        *("Is that sure?", "differences", "sweep"),
        *("What does it cost?", "loss-seconds"),
        *("Where does it help?", "position", "position-difference", "position-1", "similarity"),
        *("What do they write?", "The two mechanisms", "Set-up"),
    ]
    text = Reader(page).text
    assert "Try rates beyond it." in text
    assert "Constant is the control of selective attention" in text
    assert "once upon the text itself a time baseline baseline constant constant" in text


def test_what_was_not_evaluated_beyond_its_length_says_why(make_results: Make) -> None:
    results = make_results()
    for row, run in zip(results["variants"], results["runs"], strict=True):
        row["longer"], run["longer"] = [], {"length": None, "by_position": [], "reason": "no positions there"}
    page = render_report(results)
    assert "Not evaluated beyond the trained length: no positions there." in page
    assert "Dotted: the trained length." not in page


def test_samples_show_what_cannot_be_seen(make_results: Make) -> None:
    results = make_results()
    results["runs"][1]["samples"][0]["continuation"] = "<b>\x00\x1b[31m\u202e"
    page = render_report(results)
    assert "&lt;b&gt;\ufffd\ufffd[31m\ufffd" in page


def test_without_a_baseline_no_gain_is_claimed(make_results: Make) -> None:
    text = Reader(render_report(make_results(variants=("exclusive", "selective")))).text
    assert "No baseline to compare with" in text
    assert "Better" not in text
    assert "of the baseline's" not in text


def test_missing_similarity_is_said(make_results: Make) -> None:
    results = make_results()
    for run in results["runs"]:
        run["similarity"] = []
    page = render_report(results)
    assert "The results hold no similarity measurements." in page
    assert 'id="figure-similarity"' not in page


def test_an_almost_empty_file_still_makes_a_page() -> None:
    for results in ({}, {"variants": None, "runs": 3, "data": []}, {"variants": [{"variant": "exclusive"}]}):
        assert "Set-up" in render_report(results)
    text = Reader(render_report({"runs": [{"variant": "exclusive", "loss": float("nan")}]})).text
    assert "nan" not in text
    assert "None" not in text


def test_hostile_text_stays_text(make_results: Make) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"
    results = make_results()
    for part in ("data", "model", "machine", "config"):
        results[part]["name"] = attack
        results[part][attack] = attack
    for key in ("command", "git_revision", "exsel_version", "started"):
        results[key] = attack
    for row in (*results["variants"][1:2], *results["runs"][1:2]):
        row["variant"] = attack
    results["runs"][0]["directory"] = attack
    page = render_report(results)
    reader = Reader(page)
    assert not {"script", "img"} & set(reader.tags)
    assert attack in reader.text
    assert "{{ 7*7 }}" in reader.text


def test_writing_replaces_the_file_in_one_step(
    make_results: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_report(make_results(), path)
    before = path.read_bytes()
    assert before.endswith(b"</html>\n") or before.endswith(b"</html>")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report({}, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'exsel\[report\]'"):
        render_report({})
