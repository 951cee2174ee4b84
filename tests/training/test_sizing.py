from __future__ import annotations

from dataclasses import replace
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
    """A machine without noise: the seconds of a sequence, of a step beside its sequences, and of building a model."""
    state: dict[str, Any] = {"sequence": 0.2, "step": 0.02, "build": 1.0, "compiling": 40.0, "compiled": 0.5}
    state |= {"now": 0.0, "measured": []}

    def measure(settings: Settings, data: PackedData) -> Cost:
        cost = Cost(step=seconds_of_a_step(settings, state), start=state["build"])
        if settings.compile:
            cost = replace(cost, start=state["compiling"])
        state["measured"].append((settings.variant.name, settings.compile))
        state["now"] += cost.start + 3 * cost.step
        return cost

    monkeypatch.setattr(sizing, "_measure", measure)
    monkeypatch.setattr("exsel.training.settings.can_compile", lambda: True)
    return state


def seconds_of_a_step(settings: Settings, machine: dict[str, Any]) -> float:
    step = machine["step"] + settings.batch_size * machine["sequence"]
    return float(step * (2 if settings.variant.name == "exclusive" else 1) * (machine["compiled"] ** settings.compile))


def sized(
    runs: list[Settings], data: PackedData, machine: dict[str, Any], *, minutes: float, fixed: tuple[str, ...] = ()
) -> list[Settings]:
    machine["now"], machine["measured"] = 0.0, []
    return fit_minutes(
        runs, data, seconds_left=lambda: 60 * minutes - machine["now"], fixed=fixed, note=lambda text: None
    )


def seconds_of(runs: list[Settings], machine: dict[str, Any]) -> float:
    """What the machine would take for all of it: measuring, training, evaluating, and the cost of a step."""
    total = machine["now"]
    timed: set[str] = set()
    for run in runs:
        own = seconds_of_a_step(run, machine)
        if run.variant.name not in timed:  # the cost of a step, once a variant
            timed.add(run.variant.name)
            total += STEPS * own
        evaluated = run.evaluations * run.evaluation_blocks * own / 3 / run.batch_size
        total += run.steps * own + machine["build"] + evaluated
    return float(total)


@pytest.mark.parametrize(
    ("speed", "batch_size", "fewest_steps"), [(1 / 3, 4, 150), (1, 4, 150), (3, 2, 120), (10, 1, 50)]
)
def test_it_fills_the_time_with_equal_tokens(
    runs: list[Settings], data: PackedData, machine: dict[str, Any], speed: float, batch_size: int, fewest_steps: int
) -> None:
    machine |= {"sequence": 0.05 * speed, "step": 0.01 * speed, "build": 0.5 * speed}
    chosen = sized(runs, data, machine, minutes=6)
    assert {run.batch_size for run in chosen} == {batch_size}
    assert len({run.tokens for run in chosen}) == 1
    assert machine["now"] < 0.15 * 360
    assert 0.75 * 360 < seconds_of(chosen, machine) < 0.9 * 360
    steps = chosen[0].steps
    assert steps >= fewest_steps
    assert {(run.warmup_steps, run.save_every) for run in chosen} == {(steps // 20, steps // 5)}
    assert [(run.variant, run.seed) for run in chosen] == [(run.variant, run.seed) for run in runs]


def test_a_slow_machine_evaluates_less_unless_it_is_said_how(
    runs: list[Settings], data: PackedData, machine: dict[str, Any]
) -> None:
    runs = [replace(run, evaluations=12) for run in runs]
    few = sized(runs, data, machine, minutes=3)[0]
    assert (few.evaluations, few.evaluation_blocks) == (6, 8)
    given = ("evaluations", "evaluation_blocks", "batch_size")
    chosen = sized(runs, data, machine, minutes=6, fixed=given)[0]
    assert [getattr(chosen, name) for name in given] == [getattr(runs[0], name) for name in given]


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
    assert not any(compiled for _, compiled in machine["measured"])
    # Compiling would take too much of the time: no more than one variant is tried.
    machine |= {"compiled": 0.5, "compiling": 500.0}
    assert not sized(runs, data, machine, minutes=120)[0].compile
    assert [name for name, compiled in machine["measured"] if compiled] == ["baseline"]


def test_too_little_time_is_refused_and_enough_is_named(
    runs: list[Settings], data: PackedData, machine: dict[str, Any]
) -> None:
    with pytest.raises(ExselError, match=r"4 runs of 20 steps, .* take about (\d+) minutes here") as caught:
        sized(runs, data, machine, minutes=1)
    minutes = int(str(caught.value).split(" take about ")[1].split()[0])
    assert sized(runs, data, machine, minutes=minutes)[0].steps >= 20


def test_measuring_takes_steps(runs: list[Settings], data: PackedData) -> None:
    cost = sizing._measure(runs[0], data)
    assert cost.step > 0
    assert cost.start > 0


def test_what_was_chosen_is_read_from_the_runs(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    assert chosen_before(tmp_path) is None
    settings = small_settings(model_file, tokens=3 * 4 * 32, warmup_steps=1, save_every=0)
    train(settings, data, tmp_path / "runs" / "one")
    chosen = chosen_before(tmp_path)
    assert chosen == {name: getattr(settings, name) for name in sizing.CHOSEN}


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
