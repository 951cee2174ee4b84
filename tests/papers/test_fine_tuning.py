import json

import pytest

from evidence.papers.fine_tuning import (
    ALL,
    ALL_WEIGHTS,
    CONTROLS,
    EXCLUSION,
    EXCLUSIVE_BESIDE_NORMS,
    LEARNED,
    NEW_PARAMETERS,
    NORMS,
    RATES,
    SELECTIVE,
    SELECTIVE_BESIDE_NORMS,
    TERMS,
    UNTOUCHED,
    Setup,
    fine_tuning_outcome,
    run_fine_tuning,
    run_fine_tuning_exclusive,
    tune,
)
from evidence.papers.outcome import Job
from exsel.cli.display import RunLines
from papers.fakes import read_again


def job(folder, seeds=(0, 1)):
    text = folder / "text.txt"
    text.write_text("The cat sat on the mat. The dog sat on the log.\n" * 50)
    return Job(budget="smoke", device="cpu", seeds=seeds, data=(str(text),), folder=folder, progress=RunLines())


def test_what_is_trained_beside_comes_first():
    for question in (NEW_PARAMETERS, CONTROLS, TERMS, ALL_WEIGHTS):
        names = [way.name for way in question.ways]
        assert names[0] == UNTOUCHED.name
        for way in question.ways:
            assert way.beside is None or names.index(way.beside.name) < names.index(way.name)
    assert ALL in ALL_WEIGHTS.ways


def result(loss):
    return {
        "parameters": 3,
        "loss": loss,
        "by_position": [[1, 2, loss], [2, 4, loss]],
        "validation_curve": [{"tokens": 8, "loss": loss}],
        "moved": {"τ": loss / 10},
    }


@pytest.mark.parametrize(
    ("beside", "verdict", "words"),
    [
        ((1.9, 2.0, 2.1), "reproduced", "Better than the norms' weights: selective beside the norms (+0.1000 nats)"),
        ((2.1, 2.2, 2.3), "not reproduced", "Worse than the norms' weights: selective beside the norms"),
        ((1.9, 2.2, 2.2), "unclear", "Not told apart from the norms' weights by 3 seeds: selective beside the norms"),
    ],
)
def test_the_verdict_is_about_what_adds_to_the_control(beside, verdict, words):
    losses = {way.name: (3.0, 3.1, 3.2) for way in NEW_PARAMETERS.ways}
    losses |= {NORMS.name: (2.0, 2.1, 2.2), SELECTIVE_BESIDE_NORMS.name: beside}
    results = {name: [result(loss) for loss in each] for name, each in losses.items()}
    rates = {way.name: RATES[way.own][-1] for way in NEW_PARAMETERS.ways}
    outcome = fine_tuning_outcome(NEW_PARAMETERS, results, rates, size="")
    assert outcome.verdict == verdict
    assert outcome.conclusion.startswith(words)
    assert outcome.findings[0].ours.mean == pytest.approx(2.1 - sum(beside) / 3)
    trained = {row[0]: row for row in outcome.tables[0].rows}
    assert "an end of what was tried" in trained[SELECTIVE.label][2]
    assert trained[UNTOUCHED.label][2] == ""
    assert trained[SELECTIVE.label][4] == "τ by 0.310"  # the mean over the seeds


def test_keys_are_compared_as_losses_are():
    losses = {way.name: [result(loss) for loss in (3.0, 3.1, 3.2)] for way in EXCLUSION.ways}
    shares = {way.name: ((0.8, 0.6), (0.8, 0.6), (0.8, 0.6)) for way in EXCLUSION.ways}
    shares[EXCLUSIVE_BESIDE_NORMS.name] = ((0.2, 0.0), (0.1, 0.1), (0.1, 0.0))
    results = {
        name: [
            {**one, "passkeys": [*zip((256, 512), found, strict=True)], "passkeys_by_depth": [[0.5, found[1]]]}
            for one, found in zip(each, shares[name], strict=True)
        ]
        for name, each in losses.items()
    }
    outcome = fine_tuning_outcome(EXCLUSION, results, {way.name: 0.0 for way in EXCLUSION.ways}, size="")
    *_, learned, fixed = outcome.findings
    assert fixed.quantity == "gain of exclusive beside the norms over the norms' weights, share of passkeys found"
    assert (fixed.ours.values, fixed.holds) == (pytest.approx((-0.6, -0.6, -0.65)), False)
    assert (learned.ours.mean, learned.holds) == (0.0, None)
    assert "Passkeys found: the model as it is 70%" in outcome.conclusion
    assert outcome.tables[0].rows[0][-1] == "0.700 (0.700 to 0.700)"
    _, by_length, by_depth = outcome.charts
    found = {(chart.name, curve.label): curve.y for chart in (by_length, by_depth) for curve in chart.curves}
    assert found["passkeys", EXCLUSIVE_BESIDE_NORMS.label] == pytest.approx([0.4 / 3, 0.1 / 3])
    assert found["passkeys-by-depth", EXCLUSIVE_BESIDE_NORMS.label] == pytest.approx([0.1 / 3])


def test_smoke(tmp_path):
    first = run_fine_tuning(job(tmp_path))
    assert read_again(first) == first
    assert run_fine_tuning(job(tmp_path)) == first
    parameters = {row[0]: row[1] for row in first.tables[0].rows}
    assert parameters[UNTOUCHED.label] == "0"
    # Two layers with two query heads and one key/value head of 8: w and a of the queries' and of the values'.
    assert parameters[SELECTIVE.label] == str(2 * (2 * 8 + 2 + 8 + 1))
    assert parameters[NORMS.label] == str(5 * 16)
    moved = {row[0]: row[4] for row in first.tables[0].rows}
    assert moved[UNTOUCHED.label] == moved[NORMS.label] == ""
    assert float(moved[SELECTIVE.label].removeprefix("τ by ")) > 0
    kept = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert all(sum(each["training_losses"]) > 0 for name, each in kept.items() if "untouched" not in name)


def test_what_is_not_to_be_trained_stays(tmp_path):
    run = job(tmp_path, seeds=(0,))
    outcome = run_fine_tuning_exclusive(run)
    assert [chart.name for chart in outcome.charts] == ["gain-by-position", "passkeys", "passkeys-by-depth"]
    # Kept before keys were counted by depth: they are asked for again.
    (kept,) = tmp_path.glob("*untouched*.json")
    kept.write_text(
        json.dumps({name: value for name, value in json.loads(kept.read_text()).items() if name != "passkeys_by_depth"})
    )
    assert run_fine_tuning_exclusive(run) == outcome
    moved = {row[0]: row[4] for row in outcome.tables[0].rows}
    assert float(moved[LEARNED.label].removeprefix("α by ")) > 0
    assert moved[EXCLUSIVE_BESIDE_NORMS.label] == ""
    setup = Setup.of(run, NEW_PARAMETERS)
    rates = {NORMS.name: 1e-2, EXCLUSIVE_BESIDE_NORMS.name: 0.0}
    exclusive = tune(setup, EXCLUSIVE_BESIDE_NORMS, rates, seed=3, steps=2)
    norms = tune(setup, NORMS, rates, seed=3, steps=2)
    assert exclusive["parameters"] == norms["parameters"] == 5 * 16
    assert exclusive["loss"] != norms["loss"]
