from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Outcome, run_main
from exsel.report.results_file import results_schema
from exsel.training.sizing import Cost
from json_schema import faults


@pytest.fixture(scope="module")
def compared(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("compared") / "out"
    arguments = ["--variants", "exclusive,baseline", "--seeds", "0,1", "--lr", "1e-2"]
    return run_main("compare", *flags, *arguments, "--out", folder), folder


def read(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_it_ends_with_a_table_and_the_report(compared: tuple[Outcome, Path]) -> None:
    outcome, folder = compared
    assert outcome.code == 0
    assert outcome.err == ""
    assert "\x1b" not in outcome.out  # plain lines off a terminal
    lines = outcome.out.splitlines()
    assert lines[0] == f"to train: exclusive, baseline; seed 0, 1; into {folder}"
    assert lines[1].startswith("data: ")
    assert lines[2].startswith("model: ")
    assert "12 steps of 4 × 32 tokens on cpu, float32, eager" in lines[2]
    heading = next(index for index, line in enumerate(lines) if line.startswith("Variant"))
    assert lines[heading + 1].startswith("baseline ")
    assert lines[heading + 2].startswith("exclusive ")
    assert any(line.startswith("± and ranges are 95% intervals over 2 seeds") for line in lines)
    assert f"report: {folder / 'report.html'}" in lines
    assert (folder / "report.html").stat().st_size > 10_000


def test_progress_names_the_runs(compared: tuple[Outcome, Path]) -> None:
    lines = compared[0].out.splitlines()
    starts = [line for line in lines if line.endswith(": 12 steps")]
    assert starts == [
        "baseline, seed 0 (1 of 4): 12 steps",
        "exclusive, seed 0 (2 of 4): 12 steps",
        "baseline, seed 1 (3 of 4): 12 steps",
        "exclusive, seed 1 (4 of 4): 12 steps",
    ]
    assert any(
        line.startswith("exclusive, seed 1 (4 of 4): step 12/12, loss ") and "validation" in line for line in lines
    )


def test_minutes_choose_the_tokens_once(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = flags.index("--tokens")
    given = [*flags[:at], *flags[at + 2 :], "--variants", "baseline,exclusive", "--out", str(tmp_path / "out")]
    said = run_main("compare", *flags, "--minutes", "1", "--out", tmp_path / "out")
    assert (said.code, "give one of the two" in said.err) == (2, True)
    # A machine on which the steps take a second, so that a minute has room for some.
    monkeypatch.setattr("exsel.training.sizing._measure", lambda settings, data: Cost(step=0.6, start=1.0))
    outcome = run_main("compare", *given, "--minutes", "1")
    assert outcome.code == 0, outcome.err
    assert "measuring 3 steps of exclusive …" in outcome.out.splitlines()
    chosen = read(tmp_path / "out")["config"]
    assert 20 <= chosen["steps"] < 120
    assert chosen["batch_size"] == 4
    assert chosen["tokens"] == 128 * chosen["steps"]
    assert {run["steps"] for run in read(tmp_path / "out")["runs"]} == {chosen["steps"]}
    # On another machine, the comparison keeps them.
    monkeypatch.setattr("exsel.training.sizing._measure", lambda settings, data: Cost(step=0.1, start=1.0))
    again = run_main("compare", *given, "--minutes", "1", "--resume")
    assert again.code == 0, again.err
    assert "measuring" not in again.out
    assert read(tmp_path / "out")["config"] == chosen


def test_results_hold_the_command_and_the_runs(compared: tuple[Outcome, Path]) -> None:
    _, folder = compared
    results = read(folder)
    assert results["command"].startswith("exsel compare --model ")
    assert [(row["variant"], len(row["loss"]["values"])) for row in results["variants"]] == [
        ("baseline", 2),
        ("exclusive", 2),
    ]
    difference = results["variants"][1]["difference"]
    assert difference["low"] < difference["mean"] < difference["high"]
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.html", "runs"}


def test_one_seed_has_no_interval(flags: list[str], tmp_path: Path) -> None:
    outcome = run_main("compare", *flags, "--variants", "baseline,selective", "--out", tmp_path / "out")
    assert outcome.code == 0
    assert "one seed: no interval, and no claim" in outcome.out
    assert read(tmp_path / "out")["variants"][1]["difference"]["low"] is None


def test_a_list_of_learning_rates_is_a_sweep_that_chooses_with_a_seed_of_its_own(
    flags: list[str], tmp_path: Path
) -> None:
    outcome = run_main(
        *("compare", *flags, "--variants", "baseline,exclusive", "--lr", "1e-4,1e-2,3e-2"),
        *("--choosing-seeds", "7", "--out", tmp_path / "out"),
    )
    assert outcome.code == 0
    results = read(tmp_path / "out")
    assert list(faults(results, results_schema(), results_schema())) == []
    chosen = {row["variant"]: row["learning_rate"] for row in results["sweep"] if row["chosen"]}
    assert [(row["variant"], row["learning_rate"]) for row in results["variants"]] == list(chosen.items())
    assert [(run["seed"], run["learning_rate"]) for run in results["runs"]] == [(0, rate) for rate in chosen.values()]
    assert {run["seed"] for run in results["choosing_runs"]} == {7}
    assert len(results["choosing_runs"]) == len(results["sweep"]) == 6
    assert results["config"]["choosing_seeds"] == [7]
    assert "own best learning rate, chosen with seed 7, which no result uses" in outcome.out
    ends = {row["variant"]: row["end"] for row in results["sweep"] if row["chosen"]}
    said = "The best learning rate is at an end of those tried: "
    assert (said in outcome.out) == (said in (tmp_path / "out" / "report.html").read_text()) == any(ends.values())


def test_without_a_baseline(flags: list[str], tmp_path: Path) -> None:
    outcome = run_main("compare", *flags, "--variants", "exclusive", "--out", tmp_path / "out")
    assert outcome.code == 0
    (row,) = read(tmp_path / "out")["variants"]
    assert row["difference"] is None
    assert (tmp_path / "out" / "report.html").exists()


def test_a_finished_comparison_resumed_trains_nothing(
    compared: tuple[Outcome, Path], flags: list[str], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "out"
    shutil.copytree(compared[1], folder)
    (folder / "results.json").unlink()
    (folder / "report.html").unlink()
    arguments = ["--variants", "exclusive,baseline", "--seeds", "0,1", "--lr", "1e-2", "--resume"]
    outcome = run_main("compare", *flags, *arguments, "--out", folder)
    assert outcome.code == 0
    assert "step 12/12" not in outcome.out
    assert read(folder)["runs"] == read(compared[1])["runs"]
    assert (folder / "report.html").exists()


def test_overwrite_begins_anew(compared: tuple[Outcome, Path], flags: list[str], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "out"
    shutil.copytree(compared[1], folder)
    outcome = run_main("compare", *flags, "--variants", "baseline", "--lr", "2e-2", "--overwrite", "--out", folder)
    assert outcome.code == 0
    assert [path.name for path in (folder / "runs").iterdir()] == ["baseline-lr0.02-seed0"]
    assert "step 12/12" in outcome.out


def test_trained_models_are_asked_for_keys(flags: list[str], tmp_path: Path) -> None:
    given = [*flags, "--variants", "baseline,exclusive", "--out", str(tmp_path / "out")]
    refused = run_main("compare", *given, "--passkey", "40")
    assert (refused.code, "--passkey" in refused.err) == (2, True)
    outcome = run_main("compare", *given, "--passkey", "256")
    assert outcome.code == 0, outcome.err
    answers = [answer for run in read(tmp_path / "out")["runs"] for answer in run["answers"]]
    assert [(answer["task"], answer["measure"]) for answer in answers] == 2 * [("passkey", "found, 256 tokens")]
    assert all(0 <= answer["value"] <= 1 for answer in answers)
    assert "Difference to the baseline" in outcome.out
    assert "What the trained models answer" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_trained_models_are_asked_the_tasks_of_the_harness(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks on a local file: the answers are in the results, on the terminal and on the page."""
    harness = pytest.importorskip("lm_eval.tasks")
    import datasets

    from evaluation.test_tasks import write_tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    folder = str(write_tasks(tmp_path / "tasks"))
    monkeypatch.setattr(
        "exsel.evaluation.tasks.TaskManager",
        lambda include_path=None: harness.TaskManager(include_path=folder, include_defaults=False),
    )
    given = [*flags, "--variants", "baseline,exclusive", "--seeds", "0,1", "--out", str(tmp_path / "out")]
    outcome = run_main("compare", *given, "--tasks", "local_choices,local_last_word")
    assert outcome.code == 0, outcome.err
    runs = read(tmp_path / "out")["runs"]
    assert len(runs) == 4
    for run in runs:
        assert [(answer["task"], answer["measure"]) for answer in run["answers"]] == [
            ("local_choices", "acc, 4 questions"),
            ("local_choices", "acc_norm, 4 questions"),
            ("local_last_word", "perplexity, 4 questions, less is better"),
            ("local_last_word", "acc, 4 questions"),
        ]
    mean = sum(run["answers"][0]["value"] for run in runs if run["variant"] == "exclusive") / 2
    rows = [line for line in outcome.out.splitlines() if re.search("^exclusive +local_choices +acc, 4 questions", line)]
    assert len(rows) == 1
    assert f" {mean:.4f} " in rows[0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("perplexity, 4 questions, less is better") == 2
