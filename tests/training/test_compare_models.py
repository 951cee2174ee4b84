from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

import exsel
from exsel.data import PackedData
from training.small_runs import MODEL, SEQ_LEN
from training.test_own_model import Own

TEXTS = [f"{index}: the quick brown fox jumps over the lazy dog, and then it sleeps." * 4 for index in range(40)]
SMALL: dict[str, Any] = {
    "tokens": 4 * 4 * SEQ_LEN, "seq_len": SEQ_LEN, "batch_size": 4, "evaluations": 2, "evaluation_blocks": 4,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> Any:
    half = exsel.Variant(name="half", exclusive=exsel.ExclusiveConfig(strength=0.5))
    return exsel.compare(Own, TEXTS, variants=["baseline", half], seeds=[0, 1], learning_rates=[1e-2], **SMALL)


def test_a_result_has_the_table_and_writes_the_report(result: Any, tmp_path: Path) -> None:
    assert [row["Variant"] for row in result.table] == ["baseline", "half"]
    assert str(result).startswith(result.headline)
    report = result.write(tmp_path / "written")
    assert result.headline.split(":")[0] in report.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "written" / "results.json").read_text(encoding="utf-8")) == result.results
    assert result.results["data"]["name"] == "40 texts"
    assert result.results["recipes"]["half"]["exclusive"]["strength"] == 0.5
    drawn = {path.stem for path in (tmp_path / "written").glob("*.svg")}
    assert drawn == {chart.name for chart in result.figures} >= {"loss-tokens"}


def test_a_notebook_shows_it_without_anything_from_elsewhere(result: Any) -> None:
    shown = result._repr_html_()
    assert all(cell in shown for row in result.table for cell in (row["Variant"], row["Validation loss"]))
    assert "<script" not in shown
    assert not re.search(r"(?:src|href)=\"(?!data:)", shown)


@pytest.mark.parametrize(
    "build", [MODEL, GPT2Config(n_embd=32, n_layer=1, n_head=2)], ids=["a dictionary", "a configuration"]
)
def test_what_can_be_built(build: Any, data: PackedData, tmp_path: Path) -> None:
    settings = {name: value for name, value in SMALL.items() if name != "seq_len"}
    found = exsel.compare(build, data, variants=["exclusive"], folder=tmp_path, **settings)
    assert (tmp_path / "runs" / "exclusive-lr0.003-seed0" / "model" / "config.json").is_file()
    again = exsel.compare(build, data, variants=["exclusive"], folder=tmp_path, resume=True, **settings)
    assert again.results["runs"] == found.results["runs"]


def test_files_are_paths(corpus: Path) -> None:
    files = sorted(corpus.glob("*.txt"))
    with pytest.raises(exsel.ExselError, match=r"strings in a list are texts, and .* is a file: give it as a pathlib"):
        exsel.compare(Own, [str(path) for path in files], **SMALL)
    with pytest.raises(TypeError, match="data must be texts, paths, or what"):
        exsel.compare(Own, [files[0], "text"], **SMALL)
    found = exsel.compare(Own, files, variants=["baseline"], **SMALL)
    assert found.results["config"]["data"] == [str(path) for path in files]


def test_settings_that_there_are_not(data: PackedData) -> None:
    with pytest.raises(TypeError, match="no setting 'token'; it has text_field"):
        exsel.compare(Own, TEXTS, token=3)
    with pytest.raises(exsel.ExselError, match="the data was packed with seq_len=32: leave seq_len out"):
        exsel.compare(Own, data, seq_len=64)
    with pytest.raises(exsel.ExselError, match="no variant is called 'sparse'"):
        exsel.compare(Own, TEXTS, variants=["sparse"], **SMALL)


def test_evaluation_sets_have_names(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another text, of another kind\n" * 40, encoding="utf-8")
    found = exsel.compare(Own, TEXTS, variants=["baseline"], evaluation_sets={"other": str(other)}, **SMALL)
    (run,) = found.results["runs"]
    assert run["evaluation_sets"]["other"]["loss"] not in (None, run["loss"])
    buckets = run["by_position"]
    assert [(bucket["first"], bucket["last"]) for bucket in buckets] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    counts = [bucket["last"] - bucket["first"] + 1 for bucket in buckets]
    whole = sum(count * bucket["loss"] for count, bucket in zip(counts, buckets, strict=True)) / sum(counts)
    assert whole == pytest.approx(run["loss"])
    with pytest.raises(exsel.ExselError, match=r"--eval other=no\.txt: no such file"):
        exsel.compare(Own, TEXTS, evaluation_sets={"other": "no.txt"}, **SMALL)
