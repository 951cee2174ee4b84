"""What is said of a diagnosis without a page: sentences, numbers, texts, the table for notebooks."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from diagnostics.diagnoses import HOSTILE, build, models_of
from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.diagnosis_report import token_text
from exsel.diagnostics.diagnosis_report.diagnosed_models import (
    diagnosis_headline,
    difference,
    last_parts,
    qualifications,
    shortened,
    shown,
    spans,
)


def of_similarity(mean: float, after: float | None = None) -> Diagnosis:
    found = build(upgraded=after is not None)
    for layer in found.layers:
        layer["metrics"]["similarity"]["mean"] = mean
        if after is not None:
            layer["metrics"]["similarity_after"]["mean"] = after
    return found


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (0.42, "points along the token's own value: mean cosine 0.42"),
        (0.02, "hardly points along the token's own value: mean cosine 0.020"),
        (-0.3, "points away from the token's own value: mean cosine −0.30"),
    ],
)
def test_the_headline_says_what_the_number_says(mean: float, words: str) -> None:
    assert words in diagnosis_headline(models_of(of_similarity(mean)))


def test_the_headline_of_an_exclusive_model_says_what_is_left() -> None:
    models = models_of(of_similarity(0.4, after=1e-9))
    assert "mean cosine 0.40" in diagnosis_headline(models)
    assert "The exclusive projection leaves 0.00 of it" in qualifications(models)


def test_the_headline_compares_what_reaches_the_output_projection() -> None:
    models = models_of(of_similarity(0.4, after=0.0), replace(of_similarity(0.5), model={"name": "other"}))
    assert "less of the token's own value in plain than in other: 0.00 against 0.50" in diagnosis_headline(models)
    assert "differ by −0.50" in qualifications(models)
    assert "Before any exclusive projection: 0.40 against 0.50" in qualifications(models)
    assert "more of" in diagnosis_headline(models_of(of_similarity(0.5), of_similarity(0.3)))
    assert "as much of" in diagnosis_headline(models_of(of_similarity(0.5), of_similarity(0.5)))


def test_without_a_similarity_the_headline_says_why() -> None:
    found = build()
    for layer in found.layers:
        del layer["metrics"]["similarity"]
        layer["gaps"]["similarity"] = "no own values"
    assert diagnosis_headline(models_of(found)).endswith("could not be measured in plain.")
    assert qualifications(models_of(found)) == "The reason: no own values."


def test_a_headline_has_at_most_twenty_words() -> None:
    pairs = [(of_similarity(0.4), None), (of_similarity(0.5), of_similarity(0.3)), (of_similarity(0.5), build())]
    for pair in pairs:
        assert len(diagnosis_headline(models_of(*pair)).split()) <= 20


def test_models_of_one_name_are_told_apart() -> None:
    assert [side.name for side in models_of(build(), build())] == ["plain (first)", "plain (second)"]
    long = "a" * 30 + "/" + "b" * 30
    assert len(shortened(long)) <= 40
    assert shortened(long).startswith("aaa")
    assert shortened(long).endswith("bbb")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4237, "0.42"),
        (-0.4237, "−0.42"),
        (0.0042, "0.0042"),
        (0.00006, "0.000060"),
        (1e-9, "0.00"),
        (-1e-9, "0.00"),
        (0.05, "0.050"),
        (123.4, "123"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_differences_have_signs_and_no_false_digits() -> None:
    assert difference(0.2, 0.5) == "−0.30"
    assert difference(0.5, 0.2) == "+0.30"
    assert difference(196.0, 196.0004) == "0.00"
    assert difference(None, 1.0) == "–"


def test_spans_of_layers() -> None:
    assert spans([3]) == "layer 3"
    assert spans([0, 1, 2, 5]) == "layers 0–2, 5"


def test_gaps_are_put_together_by_reason() -> None:
    gaps = models_of(build(layers=4, lacking=(0, 1, 3)))[0].gaps()
    assert ("Spikiness", "weights out of sight", "layers 0–1, 3") in gaps
    assert ("Query temperature", "no temperatures", "all layers") in gaps
    found = build()
    found.layers[1]["metrics"]["sink_mass"]["mean"] = None
    assert ("Sink mass", "nothing was counted", "layer 1") in models_of(found)[0].gaps()


class TestText:
    @pytest.mark.parametrize(
        ("token", "shown"),
        [
            ("\n", "↵"),
            (" the", "·the"),
            ("\ta\r", "⇥a␍"),
            ("", "∅"),
            ("\u202eevil", "⟨202E⟩evil"),
            ("\x00\x1b", "⟨00⟩⟨1B⟩"),
            ("\u200b", "⟨200B⟩"),
            ("\u3000", "·"),
            ("👨\u200d👩", "👨\u200d👩"),
            ("größer", "größer"),
            ("�", "�"),
        ],
    )
    def test_every_token_can_be_seen(self, token: str, shown: str) -> None:
        assert token_text.visible(token) == shown

    def test_numbers_are_held_as_finely_as_the_scale_needs(self) -> None:
        found = build(words=["a", "b", "c"], layers=1, heads=1)
        values = [1.15123456, 1.15223456, 1.15323456]
        found.pictures[0]["layers"][0]["values"] = {"similarity": [values]}
        reader = token_text.token_texts(models_of(found))
        assert reader is not None
        held = json.loads(reader.data)["panels"][0]["measures"]["similarity"]
        assert held["all"] == held["layers"]["0"] == held["heads"]["0"][0] == [1.15123, 1.15223, 1.15323]
        assert [token.shade for token in reader.texts[0].tokens] == [0, 4, 8]
        assert token_text.rounded(0.000123456) == 0.000123
        assert token_text.rounded(12345.6) == 12346
        assert token_text.rounded(0.0) == 0

    def test_the_average_is_that_of_all_layers_and_heads(self) -> None:
        found = build(layers=5, heads=3)
        reader = token_text.token_texts(models_of(found))
        assert reader is not None
        rows = [row for layer in found.pictures[0]["layers"] for row in layer["values"]["self_weight"]]
        by_hand = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        held = json.loads(reader.data)["panels"][0]["measures"]["self_weight"]["all"]
        assert held == pytest.approx(by_hand, abs=5e-4)

    def test_a_few_tokens_far_out_do_not_flatten_the_rest(self) -> None:
        values = [1000.0, *(float(value) for value in range(99))]
        panels = [{"measures": {"similarity": {"all": values}}}]
        low, high = token_text.scale_of(panels, "similarity")
        assert 0 <= low <= 2
        assert 96 <= high <= 98
        assert token_text.shade(1000.0, low, high) == token_text.SHADES
        assert token_text.shade(5.0, 3.0, 3.0) == 0

    def test_a_large_model_keeps_its_layers_and_says_what_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sides = models_of(build(layers=4, heads=3))
        whole = token_text.token_texts(sides)
        assert whole is not None
        assert (whole.heads, whole.layers, whole.note) == (3, [0, 1, 2, 3], "")
        monkeypatch.setattr(token_text, "MOST_OF_HEADS", 100)
        by_layer = token_text.token_texts(sides)
        assert by_layer is not None
        assert (by_layer.heads, by_layer.layers) == (0, [0, 1, 2, 3])
        assert "Single heads are left out here" in by_layer.note
        assert len(by_layer.data) < len(whole.data) / 2
        monkeypatch.setattr(token_text, "MOST_OF_LAYERS", 10)
        average = token_text.token_texts(sides)
        assert average is not None
        assert (average.heads, average.layers) == (0, [])
        assert "Single layers and heads are left out here" in average.note

    def test_a_page_of_a_huge_model_stays_small(self) -> None:
        found = build(layers=1, words=["token"] * 256)
        one = found.pictures[0]["layers"][0]["values"]
        rows = {name: values * 16 for name, values in one.items()}
        found.pictures[0]["layers"] = [{"layer": layer, "values": rows} for layer in range(48)]
        reader = token_text.token_texts(models_of(found))
        assert reader is not None
        assert len(reader.data) < 1_000_000

    def test_a_temperature_comes_first_where_it_differs(self) -> None:
        found = build(upgraded=True)
        assert token_text.token_texts(models_of(found)).measure == "query_temperature"  # type: ignore[union-attr]
        assert token_text.token_texts(models_of(found, build())).measure == "similarity"  # type: ignore[union-attr]
        for layer in found.pictures[0]["layers"]:
            for name in ("query_temperature", "value_temperature"):
                layer["values"][name] = [[1.0] * 12] * 2
        assert token_text.token_texts(models_of(found)).measure == "similarity"  # type: ignore[union-attr]

    def test_nothing_in_the_data_ends_the_script(self) -> None:
        reader = token_text.token_texts(models_of(build(name=HOSTILE), build(words=[HOSTILE] * 12)))
        assert reader is not None
        assert "<" not in reader.data
        assert json.loads(reader.data)["panels"][0]["label"] == models_of(build(name=HOSTILE))[0].name
        assert not reader.has_difference


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


class TestNotebook:
    def test_a_row_for_each_layer_and_nothing_from_elsewhere(self) -> None:
        shown = Tags(build(layers=48, upgraded=True)._repr_html_())
        assert shown.tags.count("tr") == 49
        assert not {"script", "iframe", "img", "link", "svg"} & set(shown.tags)
        assert not {"id", "src", "href", "onclick"} & shown.attributes

    def test_gaps_are_dashes_with_their_reason(self) -> None:
        page = build(layers=2, lacking=(1,))._repr_html_()
        assert '<td title="weights out of sight">–</td>' in page
        assert page.count("0.00<") == 0

    def test_hostile_names_stay_text(self) -> None:
        found = replace(build(name=HOSTILE[:38]), notes=[HOSTILE])
        shown = Tags(found._repr_html_())
        assert "img" not in shown.tags
        assert HOSTILE in shown.words


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["runs/a/model", "runs/b/model"], ["a/model", "b/model"]),
        (["/x/model", "/x/other"], ["model", "other"]),
        (["org/model"], ["model"]),
        (["/x/y", "/x/y"], ["/x/y", "/x/y"]),
        ([".", "a/"], [".", "a"]),
    ],
)
def test_models_are_named_by_what_tells_them_apart(names, parts) -> None:
    assert last_parts(names) == parts
