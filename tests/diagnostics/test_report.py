"""The page of a diagnosis and its files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from diagnostics.diagnoses import HOSTILE, build, models_of
from exsel.diagnostics import diagnosis_report
from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.diagnosis_report import diagnosis_folder, diagnosis_page
from exsel.diagnostics.diagnosis_report.diagnosed_models import DiagnosedModel
from exsel.diagnostics.diagnosis_report.diagnosis_charts import figures_by_section
from exsel.diagnostics.metrics import METRICS
from exsel.report.charts import Drawable


class Reader(HTMLParser):
    """Collects what tests ask of a page: tags, ids, references, scripts, words, table cells."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[tuple[str, str]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.policy = ""
        self.words = ""
        self.rows: list[list[str]] = []
        self.items: list[str] = []
        self._inside: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._inside.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        self.targets += [(tag, str(given[name])) for name in ("href", "src", "data", "action") if given.get(name)]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])
        if tag == "script":
            self.scripts.append((given.get("type"), ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")
        if tag in ("meta", "link", "input", "br", "wbr"):
            self._inside.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif "style" not in self._inside:
            self.words += data
            if self._inside and "small" not in self._inside and {"th", "td"} & set(self._inside):
                self.rows[-1][-1] += data
            if "li" in self._inside:
                self.items[-1] += data

    def column(self, title: str) -> list[str]:
        heading = [" ".join(cell.split()) for cell in self.rows[0]]
        return [row[heading.index(title)].strip() for row in self.rows[1:]]


def render(diagnosis: Diagnosis, against: Diagnosis | None = None, *, with_figures: bool = False) -> str:
    models = models_of(diagnosis, against)
    return diagnosis_page.render_diagnosis(models, figures_by_section(models) if with_figures else {})


def figure_names(models: list[DiagnosedModel]) -> list[str]:
    return [figure.name for figures in figures_by_section(models).values() for figure in figures]


@pytest.fixture(scope="module")
def upgraded() -> str:
    return render(build(upgraded=True), with_figures=True)


@pytest.fixture(scope="module")
def both() -> str:
    return render(build(upgraded=True, name="ours", layers=4), build(name="plain", layers=2), with_figures=True)


def test_nothing_is_loaded_from_elsewhere(both: str) -> None:
    reader = Reader(both)
    loaded = {target for tag, target in reader.targets if tag != "a"}
    assert loaded
    assert all(target.startswith("#") or target == "data:," for target in loaded)
    assert not {"iframe", "object", "embed", "img", "form"} & set(reader.tags)
    assert re.findall(r"url\(\s*['\"]?(?!#)", both) == []


def test_only_the_page_s_own_script_may_run(upgraded: str) -> None:
    reader = Reader(upgraded)
    kinds = [kind for kind, _ in reader.scripts]
    assert kinds == ["application/json", None]
    digest = base64.b64encode(hashlib.sha256(reader.scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in reader.policy
    assert reader.policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in reader.policy.split("script-src")[1]
    assert json.loads(reader.scripts[0][1])["titles"]["similarity"] == "Similarity to the own value"


def test_ids_are_unique_and_every_reference_is_met(upgraded: str, both: str) -> None:
    for source in (upgraded, both):
        reader = Reader(source)
        assert len(reader.ids) == len(set(reader.ids))
        local = [target[1:] for _, target in reader.targets if target.startswith("#")]
        local += re.findall(r"url\(#([^)]+)\)", source)
        local += [
            word for value in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', source) for word in value.split()
        ]
        assert set(local) <= set(reader.ids)


@pytest.mark.parametrize("is_upgraded", [False, True])
def test_every_metric_is_a_column_or_a_named_gap_and_is_defined(is_upgraded: bool) -> None:
    found = build(upgraded=is_upgraded)
    reader = Reader(render(found))
    heading = [" ".join(cell.split()) for cell in reader.rows[0]]
    for metric in METRICS:
        is_measured = metric.name in found.layers[0]["metrics"]
        assert heading.count(metric.title) == is_measured
        assert sum(item.startswith(f"{metric.title}, ") for item in reader.items) == (not is_measured)
        assert reader.words.count(metric.meaning) == 1


def test_a_gap_is_a_dash_and_never_a_number() -> None:
    reader = Reader(render(build(layers=4, lacking=(1, 2))))
    cells = reader.column("Spikiness")
    assert [cell == "–" for cell in cells] == [False, False, True, True, False]  # the first is that of all layers
    assert "Spikiness, layers 1–2: weights out of sight" in reader.items
    assert all(cell != "0.00" for row in reader.rows[1:] for cell in row[1:])


def test_the_mean_of_all_layers_leaves_gaps_out() -> None:
    found = build(layers=3, lacking=(1,))
    means = [found.layers[index]["metrics"]["spikiness"]["mean"] for index in (0, 2)]
    assert Reader(render(found)).column("Spikiness")[0] == f"{sum(means) / 2:.2f}"


def test_what_was_left_out_and_noted_is_said() -> None:
    found = replace(
        build(),
        left_out=[{"name": "decoder.cross", "class": "CrossAttention", "reason": "no own values"}],
        notes=["a sequence of 700 tokens is longer than the model's context of 512"],
    )
    reader = Reader(render(found))
    assert "decoder.cross (CrossAttention) is left out: no own values" in reader.items
    assert "a sequence of 700 tokens is longer than the model's context of 512" in reader.items
    full = build(upgraded=True)
    assert "Every metric was measured in every layer." in Reader(render(full)).words


def test_two_models_stand_side_by_side(both: str) -> None:
    reader = Reader(both)
    labels = [row[0].split()[-1] for row in reader.rows[1:]]
    assert labels == ["ours", "plain", "difference"] * 5  # all layers, then 0 to 3
    numbers = [row[0].split()[0] for row in reader.rows[1::3]]
    assert numbers == ["all", "0", "1", "2", "3"]
    mine, theirs, gap = reader.column("Entropy")[3:6]
    assert gap in ("0.00", f"{float(mine) - float(theirs):+.2f}".replace("-", "−"))
    assert reader.column("Similarity after exclusion")[:3] == ["0.00", "–", "–"]
    # Layers 2 and 3 are the other model's no more.
    assert reader.column("Self-weight")[10] == "–"
    assert "different numbers of layers" in reader.words
    assert "relative depth (4 and 2 layers)" in reader.words


def test_models_that_read_different_tokens_are_said_to() -> None:
    assert "read different tokens" in Reader(render(build(), build(words=["a", "b"]))).words
    assert "read different tokens" not in Reader(render(build(), build(name="other"))).words


@pytest.mark.parametrize("layers", [1, 48])
def test_few_and_many_layers(layers: int) -> None:
    reader = Reader(render(build(layers=layers, heads=4), with_figures=layers == 1))
    assert len(reader.rows) == layers + 2
    assert f"{layers} layer" in reader.words


def test_hostile_text_stays_text() -> None:
    found = build(name=HOSTILE[:38], words=[HOSTILE, "\u202e", "\n"])
    found = replace(
        found,
        command=HOSTILE,
        notes=[HOSTILE],
        left_out=[{"name": HOSTILE, "class": HOSTILE, "reason": HOSTILE}],
        machine={HOSTILE: HOSTILE},
    )
    found.layers[0]["gaps"]["query_temperature"] = HOSTILE
    for source in (
        render(found),
        diagnosis_page.render_tokens(models_of(found)),
        render(found, replace(found, notes=[])),
    ):
        reader = Reader(source)
        assert "img" not in reader.tags
        assert len(reader.scripts) == 2
        assert "{{ 7*7 }}" in reader.words or "{{·7*7·}}" in reader.words
        assert "⟨202E⟩" in reader.words
        assert "\u202e" not in source


def test_without_a_text_there_is_no_script() -> None:
    reader = Reader(render(replace(build(), pictures=[])))
    assert reader.scripts == []
    assert "script-src" not in reader.policy
    assert diagnosis_page.render_tokens(models_of(replace(build(), pictures=[]))) == ""


def test_every_figure_is_known_to_the_folder_and_holds_no_fixed_colour(upgraded: str) -> None:
    pairs = [(build(upgraded=True), None), (build(upgraded=True, layers=5), build()), (build(), build())]
    for diagnosis, against in pairs:
        for name in figure_names(models_of(diagnosis, against)):
            assert diagnosis_folder.FIGURE.fullmatch(f"{name}.svg")
    drawn = re.findall(r'<svg viewBox="0 0 [^>]*role="img".*?</svg>', upgraded, re.DOTALL)
    assert len(drawn) == len(figure_names(models_of(build(upgraded=True))))
    for figure in drawn:
        assert re.findall(r"#[0-9a-f]{6}\b(?!\))", re.sub(r'"#[^"]*"', "", figure)) == []


def test_writing_makes_every_file_and_removes_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(models: list[DiagnosedModel]) -> dict[str, list[Drawable]]:  # lines and two maps
        found = figures_by_section(models)
        return {"bias": found["bias"], "places": found["places"][:2]}

    monkeypatch.setattr(diagnosis_report, "figures_by_section", few)
    folder = tmp_path / "deep" / "report"
    (folder / "figures").mkdir(parents=True)
    stale = [folder / "figures" / name for name in ("strength-layers.svg", "similarity-heads-difference.png")]
    foreign = [folder / "notes.txt", folder / "figures" / "mine.svg"]
    for path in (*stale, *foreign, folder / diagnosis_folder.AGAINST):
        path.write_text("older")
    found = build(layers=1, heads=1)
    assert found.write(str(folder)) == folder / "report.html"
    assert Diagnosis.from_dict(json.loads((folder / diagnosis_folder.RESULTS).read_text())) == found
    assert diagnosis_folder.is_diagnosis(folder)
    for damaged in ("", "{", "[" * 100_000):
        (folder / diagnosis_folder.RESULTS).write_text(damaged)
        assert diagnosis_folder.is_diagnosis(folder)
    assert (folder / diagnosis_folder.TOKENS).read_text().startswith("<!doctype html>")
    drawn = [figure.name for figures in few(models_of(found)).values() for figure in figures]
    written = {path.name for path in (folder / "figures").iterdir()}
    assert written == {f"{name}{kind}" for name in drawn for kind in (".svg", ".png", ".pdf")} | {"mine.svg"}
    for name in drawn:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "figures" / f"{name}.svg").read_text().startswith("<svg xmlns=")
    assert not (folder / diagnosis_folder.AGAINST).exists()
    assert [path.read_text() for path in foreign] == ["older", "older"]
    diagnosis_folder.clear(folder)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["mine.svg", "notes.txt"]


def test_the_other_model_s_numbers_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis_report, "figures_by_section", lambda models: {})
    build().write(tmp_path, build(name="other"))
    assert json.loads((tmp_path / diagnosis_folder.AGAINST).read_text())["model"]["name"] == "other"


def test_the_page_is_the_same_every_time(upgraded: str) -> None:
    assert render(build(upgraded=True), with_figures=True) == upgraded


def test_a_missing_extra_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'exsel\[report\]'"):
        build().write(tmp_path)
    assert list(tmp_path.iterdir()) == []
