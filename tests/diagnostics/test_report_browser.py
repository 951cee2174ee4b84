"""The report of a diagnosis in Chromium: it fits, it can be read and worked with by keyboard, and runs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headless import CONTRAST, OVERFLOW, Browser

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from diagnostics.diagnoses import HOSTILE, WORDS, build, models_of
from exsel.diagnostics.diagnosis import Diagnosis
from exsel.diagnostics.diagnosis_report import diagnosis_page
from exsel.diagnostics.diagnosis_report.diagnosis_charts import figures_by_section

CASES: dict[str, tuple[Diagnosis, Diagnosis | None]] = {
    "one layer": (build(layers=1, heads=1), None),
    "48 layers": (build(layers=48, heads=4, upgraded=True, lacking=(3, 4)), None),
    "against": (build(layers=4, upgraded=True, name="runs/ours/" + "long-name-" * 9), build(layers=3)),
}
TOKENS = "[...document.querySelectorAll('[data-panel=\"0\"] .t')]"
READOUT = "document.querySelector('.readout').textContent"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pages")

    def path_of(case: str) -> Path:
        path = folder / f"{case}.html"
        if not path.exists():
            models = models_of(*CASES[case])
            path.write_text(diagnosis_page.render_diagnosis(models, figures_by_section(models)), encoding="utf-8")
        return path

    return path_of


@pytest.fixture
def tokens_page(tmp_path: Path) -> Callable[..., Path]:
    """A page with the text alone, which is quick to make."""

    def write(*diagnoses: Diagnosis) -> Path:
        path = tmp_path / "tokens.html"
        path.write_text(diagnosis_page.render_tokens(models_of(*diagnoses)), encoding="utf-8")
        return path

    return write


def choose(browser: Browser, **values: str) -> None:
    for name, value in values.items():
        browser.evaluate(
            f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = {json.dumps(value)};"
            "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (320, "dark")])
def test_the_page_fits_and_can_be_read(
    browser: Browser, pages: Callable[[str], Path], case: str, width: int, scheme: str
) -> None:
    path = pages(case)
    browser.open(path, width=width, scheme=scheme)
    assert browser.requests() == [path.as_uri()]
    assert browser.messages() == []
    browser.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")
    browser.evaluate("document.querySelector('#show-values').click()")
    assert browser.evaluate(OVERFLOW) == 0
    contrasts = browser.evaluate(CONTRAST)
    assert len(contrasts) > 300
    assert [text for contrast, text in contrasts if contrast < 4.5] == []
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect())"
        ".map(box => [box.width, box.height, box.left, box.right])"
    )
    assert len(sizes) >= 10
    for box_width, height, left, right in sizes:
        assert min(box_width, height) > 150
        assert left >= 0
        assert right <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_shade_leaves_its_letters_readable(
    browser: Browser, tokens_page: Callable[..., Path], scheme: str
) -> None:
    browser.open(tokens_page(build(upgraded=True)), scheme=scheme)
    shades = [*(f"s{number}" for number in range(9)), *(f"n{number}" for number in range(1, 9))]
    seen = set()
    for shade in shades:
        browser.evaluate(f"{TOKENS}[0].className = 't {shade}'")
        seen.add(browser.evaluate(f"getComputedStyle({TOKENS}[0]).backgroundColor"))
        assert [text for contrast, text in browser.evaluate(CONTRAST) if contrast < 4.5] == []
    assert len(seen) == len(shades)


def shown_values(browser: Browser) -> list[float]:
    texts: list[str] = browser.evaluate(f"{TOKENS}.map(token => token.dataset.value)")
    return [float(text.replace("−", "-")) for text in texts]


def test_measure_layer_and_head_can_be_chosen(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    found = build(layers=3, heads=2)
    browser.open(tokens_page(found))
    layers = found.pictures[0]["layers"]
    every = [row for layer in layers for row in layer["values"]["similarity"]]
    means = [sum(column) / len(column) for column in zip(*every, strict=True)]
    assert shown_values(browser) == pytest.approx(means, abs=5e-3)
    assert browser.evaluate("document.querySelector('[name=head]').disabled")
    choose(browser, measure="self_weight", layer="2", head="1")
    assert shown_values(browser) == pytest.approx(layers[2]["values"]["self_weight"][1], abs=5e-3)
    assert browser.evaluate("document.querySelector('.measure').textContent") == "Self-weight"
    shades = browser.evaluate(f"{TOKENS}.map(token => Number(token.className.match(/s(\\d)/)[1]))")
    values = layers[2]["values"]["self_weight"][1]
    assert shades[values.index(max(values))] == 8
    assert shades[values.index(min(values))] == 0
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [shades[place] for place in order] == sorted(shades)
    choose(browser, layer="all")
    assert browser.evaluate("document.querySelector('[name=head]').value") == "all"


def test_the_scale_is_the_same_with_and_without_the_script(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    state = (
        f"[{TOKENS}.map(token => [token.className, token.dataset.value, token.textContent]), "
        "document.querySelector('.low').textContent, document.querySelector('.high').textContent]"
    )
    path = tokens_page(build(layers=4, upgraded=True))
    browser.open(path)
    scripted = browser.evaluate(state)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=path.as_uri())
        plain: Any = None
        while plain is None:  # until the page is there
            if browser.evaluate("document.readyState === 'complete' && document.querySelectorAll('.t').length") == 12:
                plain = browser.evaluate(state)
        assert plain == scripted
        assert browser.evaluate("document.querySelector('.choices').checkVisibility()") is False
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_tokens_are_told_by_pointer_tap_and_keyboard(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    browser.open(tokens_page(build()))
    values = browser.evaluate(f"{TOKENS}.map(token => token.dataset.value)")
    x, y = browser.evaluate(
        f"(box => [box.x + box.width / 2, box.y + box.height / 2])({TOKENS}[3].getBoundingClientRect())"
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.evaluate(READOUT) == f"query position 4 · Similarity to the own value {values[3]}"
    browser.evaluate(f"{TOKENS}[8].click()")
    assert browser.evaluate(READOUT).startswith("return position 9 ·")
    browser.press("ArrowLeft")
    assert browser.evaluate(READOUT) == f"⇥ position 8 · Similarity to the own value {values[7]}"
    browser.press("End")
    assert browser.evaluate(READOUT).startswith("� position 12")
    browser.press("ArrowRight")
    assert browser.evaluate(READOUT).startswith("� position 12")
    browser.press("Home")
    assert browser.evaluate(READOUT).startswith("def position 1")
    outline = "getComputedStyle(document.activeElement)"
    assert browser.evaluate(f"{outline}.outlineStyle") == "solid"
    assert browser.evaluate(f"parseFloat({outline}.outlineWidth)") >= 2


def test_the_text_is_one_stop_of_the_tab_key(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    browser.open(tokens_page(build(), build(name="other", shift=0.1)))
    stops = []
    for _ in range(9):
        browser.press("Tab")
        stops.append(
            browser.evaluate(
                "(at => at.className.startsWith('t ') ? at.closest('figure').dataset.panel ?? 'difference'"
                " : at.name || at.id || at.className)(document.activeElement)"
            )
        )
        width = browser.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 2 or stops[-1] == ""
    # The head is to be chosen in a layer alone.
    assert stops[:7] == ["skip", "measure", "layer", "show-values", "0", "1", "difference"]


def test_numbers_can_stand_in_the_text(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    browser.open(tokens_page(build()))
    content = f"getComputedStyle({TOKENS}[3], '::after').content"
    assert browser.evaluate(content) == "none"
    browser.evaluate("document.querySelector('#show-values').click()")
    value = browser.evaluate(f"{TOKENS}[3].dataset.value")
    # In words that Chromium gives as it was written, or with the value in its place.
    assert value in browser.evaluate(content) or "attr(data-value)" in browser.evaluate(content)


def test_two_models_and_what_they_differ_by(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    browser.open(tokens_page(build(name="first", shift=0.25), build(name="second", layers=2)))
    choose(browser, layer="1", head="0")
    panels = browser.evaluate(
        "[...document.querySelectorAll('.texts > figure')]"
        ".map(figure => [...figure.querySelectorAll('.t')].map(token => token.dataset.value))"
    )
    ours, theirs, gaps = [[float(value.replace("−", "-")) for value in panel] for panel in panels]
    assert gaps == pytest.approx([a - b for a, b in zip(ours, theirs, strict=True)], abs=1e-6)
    assert gaps == pytest.approx([0.25] * len(WORDS), abs=2e-3)
    browser.evaluate(f"{TOKENS}[4].click()")
    assert browser.evaluate(READOUT).startswith(") position 5 · Similarity to the own value first ")
    assert ", difference 0.25" in browser.evaluate(READOUT)
    assert browser.evaluate("document.querySelectorAll('.t.on').length") == 3
    choose(browser, layer="2")  # of which the second model has none
    lacks = "[...document.querySelectorAll('.lack')].map(item => item.hidden)"
    assert browser.evaluate(lacks) == [True, False, False]


def test_hostile_tokens_run_nothing(browser: Browser, tokens_page: Callable[..., Path]) -> None:
    path = tokens_page(build(name=HOSTILE[:38], words=[HOSTILE, "<b>", "&amp;", "\u202eback", "wide" * 90]))
    browser.open(path, width=320)
    assert browser.evaluate("window.hit === undefined")
    assert browser.requests() == [path.as_uri()]
    assert browser.messages() == []
    assert browser.evaluate(OVERFLOW) == 0
    shown = browser.evaluate(f"{TOKENS}.map(token => token.textContent)")
    assert shown[:4] == [HOSTILE.replace(" ", "·"), "<b>", "&amp;", "⟨202E⟩back"]
    browser.evaluate(f"{TOKENS}[0].click()")
    assert browser.evaluate("document.querySelectorAll('.readout img').length") == 0


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_a_notebook_s_own_colours_are_kept(browser: Browser, tmp_path: Path, background: str) -> None:
    ink = "#eeeeee" if background == "#111111" else "#111111"
    path = tmp_path / "notebook.html"
    shown = build(layers=48, upgraded=True)._repr_html_()
    path.write_text(f"<body style='background:{background};color:{ink}'>{shown}{shown}</body>", encoding="utf-8")
    browser.open(path, width=700)
    assert browser.evaluate(OVERFLOW) == 0
    assert [text for contrast, text in browser.evaluate(CONTRAST) if contrast < 4.5] == []
