from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.report.results_file import SCHEMA, results_schema
from exsel.training.compare import compare_runs
from exsel.training.comparison_plan import plan_runs, run_name
from exsel.training.run import Interrupted
from exsel.variants import CHOOSING_SEED, VARIANTS, Variant, choose_variants
from json_schema import faults
from training.small_runs import Watcher, metrics, small_settings


@pytest.fixture(scope="module")
def compared(
    model_file: Path, data: PackedData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    # A temperature that begins at exactly 1: the positional terms left out.
    selective = SelectiveConfig(position=False, value_position=False)
    runs = plan_runs(
        small_settings(model_file),
        variants=choose_variants(["selective", "baseline"], selective=selective),
        learning_rates=[1e-2],
        seeds=[0, 1],
    )
    folder = tmp_path_factory.mktemp("compared")
    return compare_runs(runs, data, folder, command="exsel compare", progress=Watcher()), folder


def test_plan_chooses_rates_with_a_seed_of_their_own(model_file: Path) -> None:
    plan = plan_runs(
        small_settings(model_file),
        variants=choose_variants(["exclusive", "baseline"]),
        learning_rates=[1e-3, 1e-4],
        seeds=[1, 0],
    )
    assert [run_name(run) for run in plan.choosing] == [
        f"baseline-lr0.001-seed{CHOOSING_SEED}",
        f"exclusive-lr0.001-seed{CHOOSING_SEED}",
        f"baseline-lr0.0001-seed{CHOOSING_SEED}",
        f"exclusive-lr0.0001-seed{CHOOSING_SEED}",
    ]
    assert [run_name(run) for run in plan.at({"baseline": 1e-4, "exclusive": 1e-3})] == [
        "baseline-lr0.0001-seed1",
        "exclusive-lr0.001-seed1",
        "baseline-lr0.0001-seed0",
        "exclusive-lr0.001-seed0",
    ]
    assert [(run.name, run.baseline) for run in plan.shown()][2:6] == [
        (f"baseline, lr 0.0001, seed {CHOOSING_SEED} (3 of 8)", None),
        (f"exclusive, lr 0.0001, seed {CHOOSING_SEED} (4 of 8)", f"baseline, lr 0.0001, seed {CHOOSING_SEED} (3 of 8)"),
        ("baseline, seed 1 (5 of 8)", None),
        ("exclusive, seed 1 (6 of 8)", "baseline, seed 1 (5 of 8)"),
    ]


def test_a_recipes_own_rates_take_the_place_of_the_comparisons(model_file: Path) -> None:
    own = Variant(name="own", exclusive=ExclusiveConfig(), learning_rates=(1e-3, 1e-4), position_learning_rate=1e-2)
    plan = plan_runs(small_settings(model_file), variants=[own, VARIANTS["baseline"]], learning_rates=[1e-3], seeds=[0])
    assert [(run.variant.name, run.learning_rate) for run in plan.choosing] == [("own", 1e-3), ("own", 1e-4)]
    assert [run_name(run) for run in plan.at({"own": 1e-4})] == ["baseline-lr0.001-seed0", "own-lr0.0001-seed0"]
    assert [(run.token_learning_rate, run.position_learning_rate) for run in plan.results] == [
        (1e-3, 1e-3),
        (1e-3, 1e-2),
    ]


def test_learning_rates_that_hardly_differ_are_runs_of_their_own(model_file: Path) -> None:
    rates = [1e-3, 1.0000001e-3]
    plan = plan_runs(small_settings(model_file), variants=[VARIANTS["baseline"]], learning_rates=rates, seeds=[0])
    assert len({run_name(run) for run in plan.choosing}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "--variants names nothing"),
        ({"variants": [VARIANTS["baseline"]] * 2}, "--variants names the same one twice: baseline, baseline"),
        ({"variants": [Variant(name="slow", learning_rates=(1e-4, 1e-4))]}, "--lr of slow names the same one twice"),
        ({"seeds": [1, 1]}, "--seeds names the same one twice: 1, 1"),
        ({"learning_rates": [1e-3, 1e-3]}, "--lr names the same one twice"),
        (
            {"learning_rates": [1e-3, 1e-4], "choosing_seeds": [2, 0]},
            "seed 0 is one of --choosing-seeds and of --seeds",
        ),
    ],
)
def test_plans_that_cannot_be(model_file: Path, changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"variants": [VARIANTS["baseline"]], "learning_rates": [1e-3], "seeds": [0], **changes}
    with pytest.raises(ExselError, match=message):
        plan_runs(small_settings(model_file), **values)


def test_results_are_json_and_say_it_all(compared: tuple[dict[str, Any], Path]) -> None:
    results, folder = compared

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert json.loads((folder / "results.json").read_text(), parse_constant=no_constant) == results
    assert results["schema"] == SCHEMA == results_schema()["properties"]["schema"]["const"]
    assert list(faults(results, results_schema(), results_schema())) == []
    assert results["command"] == "exsel compare"
    assert results["config"]["seeds"] == [0, 1]
    assert results["config"]["variants"] == ["baseline", "selective"]
    assert results["config"]["lr"] == [1e-2]
    assert results["config"]["steps"] == 12
    assert not results["config"].keys() & {"variant", "exclusive", "selective", "seed", "learning_rate"}
    assert list(results["recipes"]) == ["baseline", "selective"]
    assert results["recipes"]["selective"]["selective"]["position"] is False
    assert results["data"]["vocab_size"] == 259
    assert len(results["data"]["sha256"]) == 64
    assert {"platform", "cores", "memory_bytes", "device", "python", "torch", "transformers"} <= results[
        "machine"
    ].keys()
    assert results["model"]["hidden_size"] == 32
    assert results["model"]["parameters"] == results["variants"][0]["parameters"]
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [
        ("baseline", 0),
        ("selective", 0),
        ("baseline", 1),
        ("selective", 1),
    ]
    for run in results["runs"]:
        assert (folder / run["directory"] / "model" / "model.safetensors").is_file()
        assert len(metrics(folder / run["directory"])) == 12
        assert [layer["layer"] for layer in run["similarity"]] == [0, 1]
        assert run["bits_per_byte"] == pytest.approx(
            run["loss"] / math.log(2) / results["data"]["bytes_per_token"], rel=1e-12
        )


def test_rows_are_the_runs_in_sum(compared: tuple[dict[str, Any], Path]) -> None:
    results, _ = compared
    baseline, selective = results["variants"]
    losses = {(run["variant"], run["seed"]): run["loss"] for run in results["runs"]}
    assert baseline["loss"]["values"] == [losses["baseline", 0], losses["baseline", 1]]
    assert selective["difference"]["values"] == pytest.approx(
        [losses["selective", seed] - losses["baseline", seed] for seed in (0, 1)]
    )
    assert selective["difference"]["low"] < selective["difference"]["high"]
    assert baseline["difference"] is None
    assert selective["new_parameters"] > 0
    assert baseline["new_parameters"] == 0


def test_variants_of_a_seed_see_the_same_batches(compared: tuple[dict[str, Any], Path]) -> None:
    """A temperature of exactly 1 is no temperature: the first step is the baseline's, the later ones are not."""
    results, folder = compared
    losses = {
        (run["variant"], run["seed"]): [line["loss"] for line in metrics(folder / run["directory"])]
        for run in results["runs"]
    }
    for seed in (0, 1):
        assert losses["baseline", seed][0] == losses["selective", seed][0]
        assert losses["baseline", seed] != losses["selective", seed]
    assert losses["baseline", 0][0] != losses["baseline", 1][0]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "baseline"])
def test_every_variant_reads_the_same_blocks(
    model_file: Path, data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    from exsel.training.trainer import ExselTrainer
    from training.small_runs import train

    seen: dict[str, list[Any]] = {"baseline": [], variant: []}
    original = ExselTrainer.training_step

    def training_step(trainer: ExselTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        is_plain = trainer.model.config.exclusive is None and trainer.model.config.selective is None
        seen["baseline" if is_plain else variant].append(inputs["input_ids"].tolist())
        return original(trainer, model, inputs, *rest)

    monkeypatch.setattr(ExselTrainer, "training_step", training_step)
    for name in seen:
        train(small_settings(model_file, variant=name), data, tmp_path / name)
    assert len(seen["baseline"]) == 12
    assert seen["baseline"] == seen[variant]


def test_the_report_is_written(compared: tuple[dict[str, Any], Path]) -> None:
    _, folder = compared
    page = (folder / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "selective" in page


def test_an_interrupted_comparison_goes_on(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    import os
    import signal

    settings, variants = small_settings(model_file), choose_variants(["baseline", "exclusive"])

    def run(folder: Path, progress: Watcher, *, resume: bool = False, **changes: Any) -> dict[str, Any]:
        runs = plan_runs(settings, **{"variants": variants, "learning_rates": [1e-2], "seeds": [0], **changes})
        return compare_runs(runs, data, folder, command="", progress=progress, resume=resume)

    whole = run(tmp_path / "whole", Watcher())
    watcher = Watcher()

    def stop() -> None:
        if len(watcher.starts) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    watcher.after, watcher.action = 5, stop
    with pytest.raises(Interrupted):
        run(tmp_path / "run", watcher)
    assert not (tmp_path / "run" / "results.json").exists()
    watcher = Watcher()
    resumed = run(tmp_path / "run", watcher, resume=True)
    assert [start[2] for start in watcher.starts] == [6]  # the finished run is not begun again
    assert [one["loss"] for one in resumed["runs"]] == [one["loss"] for one in whole["runs"]]

    # More runs of the same kind can be added; runs of another kind cannot, and nothing is trained to find out.
    more = run(tmp_path / "run", Watcher(), resume=True, seeds=[0, 1])
    assert [one["loss"] for one in more["runs"]][:2] == [one["loss"] for one in whole["runs"]]
    other = plan_runs(
        small_settings(model_file, weight_decay=0.0), variants=variants[:1], learning_rates=[1e-2], seeds=[7, 0]
    )
    watcher = Watcher()
    with pytest.raises(ExselError, match=r"other settings \(weight_decay\)"):
        compare_runs(other, data, tmp_path / "run", command="", progress=watcher, resume=True)
    assert watcher.starts == []


def test_the_schema_describes_every_name_and_refuses_others(compared: tuple[dict[str, Any], Path]) -> None:
    schema, (results, _) = results_schema(), compared

    def check(part: Any) -> None:
        for each in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
            check(each)
        if isinstance(part, dict) and isinstance(part.get("properties"), dict):
            assert all(each["description"].endswith(".") for each in part["properties"].values())

    check(schema)
    run = {**results["runs"][0], "loss": "low", "extra": 1}
    broken = {**results, "runs": [run], "variants": [{}], "schema": SCHEMA + 1}
    found = list(faults(broken, schema, schema))
    assert f"$.schema is {SCHEMA + 1}, not {SCHEMA}" in found
    assert "$.runs[0].loss is 'low', not number" in found
    assert "$.runs[0] has extra, which the schema does not know" in found
    assert "$.variants[0] lacks loss" in found
