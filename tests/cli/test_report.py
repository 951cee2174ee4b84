from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.conftest import run_main
from exsel.report.results_file import SCHEMA


@pytest.fixture(scope="module")
def folder(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "one"
    assert run_main("compare", *flags, "--variants", "baseline,exclusive", "--out", folder).code == 0
    return folder


def test_the_page_is_made_again(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    outcome = run_main("report", folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").read_text(encoding="utf-8") == page


def test_several_stand_on_one_page_by_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "two")
    before = (folder / "report.html").read_bytes()
    outcome = run_main("report", folder, tmp_path / "two", "--out", tmp_path / "page.html")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("2 comparisons on the same data, each against its own baseline.\none: ")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in ("baseline (one)", "exclusive (one)", "baseline (two)", "exclusive (two)", "two/runs/baseline"):
        assert name in page
    assert (folder / "report.html").read_bytes() == before


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    results = json.loads((other / "results.json").read_text(encoding="utf-8"))
    results["config"]["steps"] = 5
    results["data"]["sha256"] = "0"
    (other / "results.json").write_text(json.dumps(results), encoding="utf-8")
    outcome = run_main("report", folder, other, "--out", tmp_path / "page.html")
    assert (outcome.code, outcome.err) == (
        2,
        "exsel: one and other cannot stand on one page: they differ in data sha256, steps; make a page of each\n",
    )
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("schema", "remedy"), [(SCHEMA + 1, "upgrade exsel"), (2, "with --resume"), (None, "--resume")]
)
def test_another_version_of_the_results_is_refused(
    folder: Path, tmp_path: Path, schema: int | None, remedy: str
) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "results.json").write_text(json.dumps({**results, "schema": schema}), encoding="utf-8")
    outcome = run_main("report", tmp_path)
    assert outcome.code == 2
    assert f"this exsel reads schema {SCHEMA}: " in outcome.err
    assert remedy in outcome.err
    assert not (tmp_path / "report.html").exists()


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    assert "--out is needed for several folders" in run_main("report", folder, tmp_path).err
    assert "no such folder" in run_main("report", tmp_path / "absent").err
    assert "has no results.json: it holds no comparison" in run_main("report", tmp_path).err
    (folder / "results.json").rename(tmp_path / "kept")
    assert "an unfinished comparison: go on with --resume" in run_main("report", folder).err
    (tmp_path / "kept").rename(folder / "results.json")
