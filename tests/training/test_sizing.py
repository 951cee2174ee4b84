from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.training import sizing
from exsel.training.comparison_plan import plan_runs
from exsel.training.estimate import estimate, run_size
from exsel.training.run_model import build_model
from exsel.training.settings import COMPILED_STEPS, Settings, schedule
from exsel.training.sizing import Cost, chosen_before, fit_minutes
from exsel.training.step_cost import STEPS
from exsel.variants import choose_variants
from training.small_runs import small_settings, train


@pytest.fixture
def runs(model_file: Path) -> list[Settings]:
    planned = plan_runs(
        small_settings(model_file),
        variants=choose_variants(["baseline", "exclusive"]),
        learning_rates=[1e-2],
        seeds=[0, 1],
    )
    return planned.runs


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine without noise: the seconds of a step and of what surrounds the steps, the clock, what was measured."""
    state: dict[str, Any] = {"step": 1.0, "compiled": 0.5, "around": 10.0, "now": 0.0, "measured": []}

    def measure(settings: Settings, data: PackedData) -> Cost:
        step = state["compiled"] if settings.compile else state["step"]
        step *= 2 if settings.variant.name == "exclusive" else 1
        state["measured"].append((settings.variant.name, settings.compile))
        state["now"] += 5 * step + state["around"]
        return Cost(step=step, around=state["around"])

    monkeypatch.setattr(sizing, "_measure", measure)
    monkeypatch.setattr("exsel.training.settings.can_compile", lambda: True)
    return state


def sized(
    runs: list[Settings], data: PackedData, machine: dict[str, Any], *, minutes: float, fixed: tuple[str, ...] = ()
) -> list[Settings]:
    machine["now"], machine["measured"] = 0.0, []
    return fit_minutes(
        runs, data, seconds_left=lambda: 60 * minutes - machine["now"], fixed=fixed, note=lambda text: None
    )


def seconds_of(runs: list[Settings], data: PackedData, machine: dict[str, Any]) -> float:
    """What the machine would take for all of it, evaluations as :func:`fit_minutes` takes them."""
    step = machine["compiled"] if runs[0].compile else machine["step"]
    total = machine["now"]
    timed: set[str] = set()
    for run in runs:
        own = step * (2 if run.variant.name == "exclusive" else 1)
        if run.variant.name not in timed:  # the cost of a step, once a variant
            timed.add(run.variant.name)
            total += STEPS * own
        evaluation = own / 3 * -(-len(data.validation) // run.batch_size)
        total += run.steps * own + machine["around"] + (run.evaluations - 1) * evaluation
    return float(total)


@pytest.mark.parametrize("speed", [1 / 3, 1, 3])
def test_it_fills_the_time_with_equal_tokens(
    runs: list[Settings], data: PackedData, machine: dict[str, Any], speed: float
) -> None:
    machine |= {"step": 0.3 * speed, "around": 2 * speed}
    chosen = sized(runs, data, machine, minutes=6)
    assert machine["measured"][:2] == [("baseline", False), ("exclusive", False)]
    assert len({run.tokens for run in chosen}) == 1
    assert 0.8 * 360 < seconds_of(chosen, data, machine) < 360
    steps = chosen[0].steps
    assert {(run.warmup_steps, run.save_every) for run in chosen} == {(steps // 20, steps // 5)}
    assert [(run.variant, run.seed) for run in chosen] == [(run.variant, run.seed) for run in runs]


def test_it_compiles_where_that_allows_more_steps(
    runs: list[Settings], data: PackedData, machine: dict[str, Any]
) -> None:
    chosen = sized(runs, data, machine, minutes=120)
    assert ("exclusive", True) in machine["measured"]
    assert chosen[0].compile
    assert chosen[0].steps > COMPILED_STEPS
    machine["compiled"] = 1.1
    assert not sized(runs, data, machine, minutes=120)[0].compile
    assert not sized(runs, data, machine, minutes=120, fixed=("compile",))[0].compile
    assert [compiled for _, compiled in machine["measured"]] == [False, False]


def test_too_little_time_is_refused_and_enough_is_named(
    runs: list[Settings], data: PackedData, machine: dict[str, Any]
) -> None:
    with pytest.raises(ExselError, match=r"4 runs of 20 steps, .* take about (\d+) minutes here") as caught:
        sized(runs, data, machine, minutes=1)
    minutes = int(str(caught.value).split(" take about ")[1].split()[0])
    assert sized(runs, data, machine, minutes=minutes)[0].steps >= 20


def test_measuring_trains_some_steps_and_leaves_nothing(
    runs: list[Settings], data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cost = sizing._measure(runs[0], data)
    assert cost.step > 0
    assert cost.around > 0
    assert list(tmp_path.iterdir()) == []


def test_what_was_chosen_is_read_from_the_runs(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    assert chosen_before(tmp_path) is None
    settings = small_settings(model_file, tokens=3 * 4 * 32, warmup_steps=1, save_every=0)
    train(settings, data, tmp_path / "runs" / "one")
    assert chosen_before(tmp_path) == {"tokens": 384, "warmup_steps": 1, "save_every": 0, "compile": False}


def test_short_runs_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exsel.training.settings.can_compile", lambda: True)
    assert not schedule(COMPILED_STEPS - 1)["compile"]
    assert schedule(COMPILED_STEPS)["compile"]


@pytest.mark.parametrize("variant", ["baseline", "exclusive+selective"])
def test_the_size_is_that_of_the_model(model_file: Path, data: PackedData, variant: str) -> None:
    import torch

    settings = small_settings(model_file, variant=variant)
    size = run_size(settings, data.description.vocab_size)
    model = build_model(settings, data)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.state_bytes == 16 * size.parameters
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.ones((settings.batch_size, settings.seq_len), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(input_ids=ids, labels=ids)
    measured = sum(count for storage, count in kept.items() if storage not in own)
    assert size.activation_bytes is not None
    assert 0.8 * measured < size.activation_bytes < 1.5 * measured  # what a kernel keeps for itself differs by device


def test_the_estimate_says_runs_steps_and_memory(runs: list[Settings], data: PackedData) -> None:
    model, size = estimate(runs, data.description.vocab_size).splitlines()
    assert "4 runs, each 12 steps of 4 × 32 tokens on cpu, float32, eager" in model
    assert " parameters; " in size
    assert "6.14k tokens in all" in size
    assert size.endswith(" MiB of memory")
