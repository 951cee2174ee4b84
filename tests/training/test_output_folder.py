from __future__ import annotations

import json
from pathlib import Path

import pytest

from exsel.training.output_folder import checkpoints, clear_output, is_comparison, is_run, last_good

RUN = json.dumps({"variant": "baseline", "seq_len": 32})
RESULTS = json.dumps({"exsel_version": "0", "variants": []})


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_html", ".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_folder_is_known_by_what_its_files_say(tmp_path: Path) -> None:
    write(tmp_path / "run", settings_json=RUN)
    write(tmp_path / "whole", results_json=RESULTS)
    write(tmp_path / "begun", runs__a__settings_json=RUN)
    write(tmp_path / "editor", settings_json='{"editor.tabSize": 4}', results_json="[1, 2]")
    write(tmp_path / "lists", settings_json="[]", results_json="{}")
    write(tmp_path / "text", settings_json="not JSON", results_json="not JSON")
    (tmp_path / "empty").mkdir()
    found = {path.name: (is_run(path), is_comparison(path)) for path in tmp_path.iterdir()}
    assert found == {
        "run": (True, False),
        "whole": (False, True),
        "begun": (False, True),
        "editor": (False, False),
        "lists": (False, False),
        "text": (False, False),
        "empty": (False, False),
    }


def test_damaged_settings_beside_a_record_are_still_a_run(tmp_path: Path) -> None:
    write(tmp_path, settings_json="{")
    (tmp_path / "metrics.jsonl").touch()
    assert is_run(tmp_path)


@pytest.mark.parametrize("with_results", [False, True])
def test_clearing_removes_what_exsel_wrote_and_nothing_else(tmp_path: Path, with_results: bool) -> None:
    folder = tmp_path / "out"
    write(folder, runs__a__settings_json=RUN, runs__a__result_json="{}", runs__a__model__config_json="{}")
    write(folder, **{"runs__a__exsel-manifest_json": "{}"})
    write(folder, **{"runs__a__checkpoint-12__model.safetensors": "", "runs__a__.saving__x": ""})
    if with_results:
        write(folder, results_json=RESULTS, report_html="")
    write(folder, notes="mine", runs__mine__settings_json="{}", **{"runs__a__checkpoint-old__x": "mine"})
    clear_output(folder)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"notes", "runs/mine/settings.json", "runs/a/checkpoint-old/x"}


def test_clearing_leaves_no_empty_folders(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, results_json=RESULTS, report_html="", runs__a__settings_json=RUN)
    clear_output(folder)
    assert not folder.exists() or not any(folder.iterdir())


def test_clearing_takes_a_lone_runs_event_files(tmp_path: Path) -> None:
    write(tmp_path / "out", settings_json=RUN, **{"runs__now__events.out.tfevents.1": "", "runs__own": "mine"})
    clear_output(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["own"]


def test_clearing_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    write(tmp_path, settings_json="{}", results_json="{}", report_html="", model__config_json="{}")
    before = sorted(tmp_path.rglob("*"))
    clear_output(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    assert last_good(tmp_path) == "no checkpoint had been saved"
    for name in ("9", "100", "20", "x", "", "²", "٣", "-3", "07", "0", "7-backup", "9" * 100):
        (tmp_path / f"checkpoint-{name}").mkdir()
    (tmp_path / "checkpoint-30").touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert last_good(tmp_path).endswith("checkpoint-100")
