from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headless import CONTRAST, OVERFLOW, Browser

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

Make = Callable[..., dict[str, Any]]
Report = Callable[[dict[str, Any]], Path]

CASES: dict[str, dict[str, Any]] = {
    "one seed": {},
    "one layer": {"layers": 1, "variants": ("baseline", "exclusive")},
    "48 layers, three seeds": {"layers": 48, "seeds": (0, 1, 2)},
    "sweep": {"rates": (1e-3, 3e-3, 1e-2), "seeds": (0, 1)},
    "texts": {"seeds": (0, 1), "texts": ("news", "code")},
    "no baseline": {"variants": ("exclusive", "selective")},
}

FIGURES = """[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect(), paths = svg.querySelectorAll('path').length;
  return [box.width, box.height, box.left, box.right, paths];
})"""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_fits_and_its_figures_show(
    browser: Browser, report: Report, make_results: Make, case: str, width: int
) -> None:
    path = report(make_results(**CASES[case]))
    browser.open(path, width=width)
    assert browser.requests() == [path.as_uri()]
    assert browser.messages() == []
    browser.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")
    assert browser.evaluate(OVERFLOW) == 0
    figures = browser.evaluate(FIGURES)
    # Without a baseline there is no difference, neither of the final losses nor by position.
    assert len(figures) == {"sweep": 7, "no baseline": 4, "texts": 8}.get(case, 6)
    for figure_width, height, left, right, paths in figures:
        assert figure_width > 250
        assert height > 150
        assert left >= 0
        assert right <= width
        assert paths > 10


def test_figures_stand_side_by_side_only_where_there_is_room(
    browser: Browser, report: Report, make_results: Make
) -> None:
    path = report(make_results())
    tops = "[...document.querySelectorAll('#figure-position, #figure-position-difference')].map(f => f.offsetTop)"
    browser.open(path, width=1280)
    first, second = browser.evaluate(tops)
    assert first == second
    browser.open(path, width=360)
    first, second = browser.evaluate(tops)
    assert first < second


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme_and_can_be_read(
    browser: Browser, report: Report, make_results: Make, scheme: str
) -> None:
    browser.open(report(make_results(rates=(1e-3, 3e-3))), scheme=scheme)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(background) < 40 if scheme == "dark" else min(background) > 240
    browser.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")
    contrasts = browser.evaluate(CONTRAST)
    assert len(contrasts) > 100
    assert [text for contrast, text in contrasts if contrast < 4.5] == []
    line = "getComputedStyle(document.querySelector('.swatch line')).stroke"
    drawn = "[...document.querySelectorAll('figure svg path')].map(path => getComputedStyle(path).stroke)"
    assert browser.evaluate(line) in browser.evaluate(drawn)


def test_print_is_light_complete_and_fits(browser: Browser, report: Report, make_results: Make) -> None:
    browser.open(report(make_results(seeds=(0, 1))), width=720, scheme="dark", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("[...document.querySelectorAll('details dl')].every(list => list.checkVisibility())")
    assert browser.evaluate(OVERFLOW) == 0


def test_a_wide_table_scrolls_by_keyboard(browser: Browser, report: Report, make_results: Make) -> None:
    browser.open(report(make_results(texts=("a", "b", "c", "d"))), width=700)
    table = "document.querySelector('.scroll')"
    assert browser.evaluate(f"{table}.scrollWidth > {table}.clientWidth")
    # Chromium focuses any scroller; other browsers only one that says so.
    assert browser.evaluate(f"{table}.getAttribute('tabindex')") == "0"
    browser.evaluate(f"{table}.focus()")
    assert browser.evaluate(f"document.activeElement === {table}")
    browser.press("ArrowRight")
    scrolled = f"""new Promise(done => {{
      const look = () => {table}.scrollLeft > 0 ? done(true) : requestAnimationFrame(look);
      look();
    }})"""
    assert browser.evaluate(scrolled)


@pytest.mark.parametrize("width", [1280, 360])
def test_every_stop_of_the_tab_key_is_seen_and_every_fold_opens(
    browser: Browser, report: Report, make_results: Make, width: int
) -> None:
    browser.open(report(make_results()), width=width)
    stop = """(() => {
      const element = document.activeElement, box = element.getBoundingClientRect();
      return element === document.body ? null
        : [element.tagName, box.width > 0 && box.bottom > 0 && box.top < innerHeight,
           parseFloat(getComputedStyle(element).outlineWidth)];
    })()"""
    tags = []
    for _ in range(100):
        browser.press("Tab")
        if (found := browser.evaluate(stop)) is None:
            break
        tag, is_seen, outline = found
        assert is_seen, tags
        assert outline >= 2, tags
        tags.append(tag)
        if tag == "SUMMARY":
            browser.press("Enter")
            assert browser.evaluate("document.activeElement.parentElement.open")
    assert tags.count("SUMMARY") == browser.evaluate("document.querySelectorAll('summary').length") > 3
    assert tags[0] == "A"
    assert "DIV" in tags


def test_on_a_narrow_screen_rows_are_cards_with_nothing_hidden(
    browser: Browser, report: Report, make_results: Make
) -> None:
    browser.open(report(make_results(seeds=(0, 1), texts=("news",))), width=360)
    browser.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")
    hidden = """[...document.querySelectorAll('.scroll, .cards td')].filter(each => {
      const box = each.getBoundingClientRect();
      return each.scrollWidth > each.clientWidth + 1 || box.left < 0 || box.right > innerWidth || box.height === 0;
    }).length"""
    assert browser.evaluate(hidden) == 0
    headings = browser.evaluate(
        "[...document.querySelectorAll('#help-table tbody tr:first-child td')].map(cell => "
        "getComputedStyle(cell, '::before').content)"
    )
    assert headings[:4] == ['"Validation loss"', '"Bits per byte"', '"Difference"', '"Loss on news"']


def test_hostile_names_run_nothing(browser: Browser, report: Report, make_results: Make) -> None:
    results = make_results()
    results["data"]["name"] = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>" + "wide" * 60
    results["command"] = results["data"]["name"]
    path = report(results)
    browser.open(path, width=360)
    assert browser.evaluate("window.hit === undefined")
    assert browser.requests() == [path.as_uri()]
    assert browser.evaluate(OVERFLOW) == 0
