from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from evidence.papers import experiments
from evidence.papers.outcome import Finding, Verdict
from evidence.papers.results_page import finding_rows, to_markdown, verdict_in_words, write_page
from exsel.intervals import Estimate
from papers.fakes import FIRST, QUESTION, SECOND, install, make_outcome, make_record


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Any:
        raise AssertionError("a page runs nothing")

    install(monkeypatch, first=refuse, second=refuse, question=refuse)


def lines_of(page: str, heading: str) -> list[str]:
    """The section below a heading of the third level."""
    return page.split(f"\n### {heading}\n")[1].split("\n### ")[0].splitlines()


def test_what_was_not_run_says_how_to() -> None:
    page = to_markdown([])
    assert page.count("**Not run.**") == 3
    assert "**Not run.** `python -m evidence reproduce first-one` runs it." in page
    assert "| [Is it so?](#is-it-so) | Beyond the papers | – | Not run | – |" in page


def test_a_record_in_full() -> None:
    lines = lines_of(to_markdown([make_record(FIRST, make_outcome())]), FIRST.title)
    assert "**Claim (Zhai 2026, Figure 1).** It is so." in lines
    assert "**Reproduced.** So it is." in lines
    assert (
        "Looked at: 2 layers | 3 tokens. The cpu budget, seeds 0, 1, 2, 12.3 s on 2 cores of a chip, torch 2.13.0, "
        "transformers 5.23.0, revision 0123456789. `python -m evidence reproduce first-one --budget cpu`" in lines
    )
    assert "| Quantity | Expected | Published | Ours [95% interval] | Difference | Holds |" in lines
    assert "| gain \\| loss | above 0 | 1.5000 | 2.0000 [−0.4841, 4.4841] | +0.5000 | yes |" in lines
    assert "| residue | – | – | −3.0e−09 | – | no |" in lines
    assert "| count | – | 12,345 | 12,345 | 0 | – |" in lines
    assert "![A line](reproduction/first-one-cpu-line.svg)" in lines
    assert "*A line.* It falls." in lines
    assert "| 1 | 2\\|3 |" in lines


def test_the_summary_shows_the_first_finding_and_links_to_the_section() -> None:
    page = to_markdown([make_record(FIRST, make_outcome())])
    row = (
        "| [The first, with a comma](#the-first-with-a-comma) | Zhai 2026, Figure 1 | cpu | Reproduced | "
        "gain \\| loss: 2.0000 [−0.4841, 4.4841] (published 1.5000) |"
    )
    assert row in page.splitlines()


def test_all_budgets_of_an_experiment_are_shown_the_cpu_first() -> None:
    outcome = make_outcome()
    records = [make_record(FIRST, outcome, budget="gpu", seeds=1), make_record(FIRST, outcome, budget="cpu")]
    page = to_markdown(records)
    headings = [line for line in page.splitlines() if line.startswith("####")]
    assert headings == ["#### With the cpu budget", "#### With the gpu budget"]
    assert "The gpu budget, seed 0, " in page
    budgets = re.findall(r"^\| \[The first.*?\| (cpu|gpu) \|", page, re.M)
    assert budgets == ["cpu", "gpu"]
    assert "first-one-gpu-line.svg" in page


def test_an_outcome_without_findings_charts_and_tables() -> None:
    bare = replace(make_outcome("not run"), findings=(), charts=(), tables=())
    lines = lines_of(to_markdown([make_record(SECOND, bare)]), SECOND.title)
    assert "**Not run.** So it is." in lines
    assert not any(line.startswith(("|", "!")) for line in lines)
    assert "| cpu | Not run | – |" in to_markdown([make_record(SECOND, bare)])


def test_a_column_that_says_nothing_is_left_out() -> None:
    silent = Finding(quantity="loss", ours=Estimate.of(1.0))
    lines = lines_of(to_markdown([make_record(FIRST, replace(make_outcome(), findings=(silent,)))]), FIRST.title)
    assert "| Quantity | Published | Ours [95% interval] | Difference | Holds |" in lines
    assert "| loss | – | 1.0000 | – | – |" in lines


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_verdict_has_words_for_claims_and_for_questions(verdict: Verdict) -> None:
    claim = verdict_in_words(make_record(FIRST, make_outcome(verdict)))
    answer = verdict_in_words(make_record(QUESTION, make_outcome(verdict)))
    assert f"**{claim}.**" in to_markdown([make_record(FIRST, make_outcome(verdict))])
    if verdict == "not reproduced":
        assert (claim, answer) == ("Not reproduced at this size", "Not at this size")
    if verdict in ("reproduced", "partly", "not reproduced"):
        assert "eproduced" in claim
        assert "eproduced" not in answer


def test_questions_are_not_claims() -> None:
    lines = lines_of(to_markdown([make_record(QUESTION, make_outcome())]), QUESTION.title)
    assert "**Question.** Is it?" in lines
    assert "**Yes.** So it is." in lines


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.0, 4, "0.0000"),
        (-0.00004, 4, "−4.0e−05"),
        (0.00006, 4, "0.0001"),
        (1234567.891, 1, "1,234,567.9"),
        (-2.5, 2, "−2.50"),
    ],
)
def test_numbers(value: float, digits: int, shown: str) -> None:
    finding = Finding(quantity="x", ours=Estimate.of(value), digits=digits)
    assert finding_rows(replace(make_outcome(), findings=(finding,)))[0]["ours"] == shown


def test_every_link_of_the_real_page_has_its_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    page = to_markdown([])
    headings = re.findall(r"^### (.*)$", page, re.M)
    # GitHub: lower case, without punctuation, hyphens for spaces.
    anchors = {re.sub(r"[^a-z0-9\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#(.*?)\)", page)
    assert len(links) == len(experiments.EXPERIMENTS)
    assert set(links) == anchors


def test_the_page_with_its_charts_as_files(tmp_path: Path) -> None:
    records = [make_record(FIRST, make_outcome()), make_record(FIRST, make_outcome(), budget="gpu")]
    page = write_page(tmp_path, records, png=True)
    assert page.read_text() == to_markdown(records)
    names = {f"first-one-{budget}-line.{kind}" for budget in ("cpu", "gpu") for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "reproduction").iterdir()} == names
    for picture in re.findall(r"\]\((reproduction/.*?)\)", page.read_text()):
        assert (tmp_path / picture).exists()
    (tmp_path / "reproduction" / "notes.txt").write_text("mine")
    write_page(tmp_path, records[:1], png=False)
    left = {path.name for path in (tmp_path / "reproduction").iterdir()}
    assert left == {"first-one-cpu-line.svg", "notes.txt"}
