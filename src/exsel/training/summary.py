"""The table of a comparison, a row for each variant, and that of its learning rates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exsel.intervals import Estimate
from exsel.variants import BASELINE

Run = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a training step of a variant takes, measured apart from the trainings, in so many rounds.

    Args:
        milliseconds: the median of the rounds; beside a baseline, the baseline's times the ratio's mean.
        ratio: to the baseline's step of the same round, over the rounds; ``None`` without a baseline.
    """

    milliseconds: float
    ratio: Estimate | None
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        ratio = None if self.ratio is None else self.ratio.to_dict()
        return {"milliseconds": self.milliseconds, "ratio": ratio, "rounds": self.rounds}


def summarise(
    runs: Sequence[Run], tokens_per_step: int, step_costs: Mapping[str, StepCost] | None = None
) -> list[dict[str, Any]]:
    """The rows of the table.

    Differences and ratios are to the baseline, between runs of the same seed; each has its 95% interval over the seeds.
    Without ``step_costs``, by variant, nothing is said of the time to a loss.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run["variant"], []).append(run)
    baselines = {run["seed"]: run for run in groups.get(BASELINE, [])}
    rows = []
    for variant, members in groups.items():
        pairs = [(run, baselines[run["seed"]]) for run in members if run["seed"] in baselines]
        is_compared = bool(pairs) and variant != BASELINE
        cost = (step_costs or {}).get(variant)
        parameters, new_parameters = members[0]["parameters"], members[0]["new_parameters"]
        rows.append(
            {
                "variant": variant,
                "learning_rate": members[0]["learning_rate"],
                "parameters": parameters,
                "new_parameters": new_parameters,
                "new_parameters_percent": 100 * new_parameters / (parameters - new_parameters),
                **_losses(members, pairs if is_compared else []),
                "step_cost": None if cost is None else cost.to_dict(),
                "train_seconds": _over_seeds(run["train_seconds"] for run in members),
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in members),
                "reach": _reach(pairs, tokens_per_step, cost) if is_compared else None,
            }
        )
    return rows


def summarise_sweep(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What each learning rate came to, and which is chosen for each variant: that of the lowest mean loss."""
    groups: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        groups.setdefault(run["variant"], {}).setdefault(run["learning_rate"], []).append(run["loss"])
    rows = []
    for variant, losses in groups.items():
        chosen = min(losses, key=lambda rate: statistics.fmean(losses[rate]))
        ends = {max(losses): "highest", min(losses): "lowest"}
        rows += [
            {
                "variant": variant,
                "learning_rate": rate,
                "loss": _over_seeds(losses[rate]),
                "chosen": rate == chosen,
                "end": ends.get(rate),
            }
            for rate in sorted(losses)
        ]
    return rows


def _losses(members: Sequence[Run], pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """The losses over the seeds and their differences to the baseline's: on all tokens, by position, on other texts."""

    def text(name: str) -> dict[str, Any]:
        def part(run: Run) -> Run:
            return run["evaluation_sets"][name]  # type: ignore[no-any-return]

        positions = _by_position(members, pairs, lambda run: part(run)["by_position"])
        return {**_loss(members, pairs, part), "by_position": positions}

    return {
        **_loss(members, pairs, lambda run: run),
        "by_position": _by_position(members, pairs, lambda run: run.get("by_position", [])),
        "longer": _by_position(members, pairs, lambda run: run.get("longer", {}).get("by_position", [])),
        "evaluation_sets": {name: text(name) for name in members[0].get("evaluation_sets", {})},
    }


def _loss(members: Sequence[Run], pairs: Sequence[tuple[Run, Run]], part: Callable[[Run], Run]) -> dict[str, Any]:
    """The loss in a part of each run."""
    losses = [part(run)["loss"] for run in members]
    differences = [part(run)["loss"] - part(base)["loss"] for run, base in pairs]
    bits = _over_seeds(part(run)["bits_per_byte"] for run in members)
    return {**_compared(losses, differences), "bits_per_byte": bits}


def _by_position(
    members: Sequence[Run], pairs: Sequence[tuple[Run, Run]], part: Callable[[Run], Sequence[Run]]
) -> list[dict[str, Any]]:
    """The loss in each bucket of positions; none where the runs have not the same buckets."""
    buckets = [(bucket["first"], bucket["last"]) for bucket in part(members[0])]
    runs = [*members, *(base for _, base in pairs)]
    if any([(bucket["first"], bucket["last"]) for bucket in part(run)] != buckets for run in runs):
        return []
    rows = []
    for place, (first, last) in enumerate(buckets):
        losses = [part(run)[place]["loss"] for run in members]
        differences = [part(run)[place]["loss"] - part(base)[place]["loss"] for run, base in pairs]
        rows.append({"first": first, "last": last, **_compared(losses, differences)})
    return rows


def _compared(losses: Sequence[float], differences: Sequence[float]) -> dict[str, Any]:
    return {"loss": _over_seeds(losses), "difference": _over_seeds(differences) if differences else None}


def _over_seeds(values: Iterable[float]) -> dict[str, Any]:
    return Estimate.of(*values).to_dict()


def reach(curve: Sequence[Mapping[str, float]], loss: float) -> tuple[float, float] | None:
    """Tokens and seconds after which a validation curve first reaches ``loss``, linearly interpolated."""
    previous = None
    for point in curve:
        if point["loss"] <= loss:
            before = previous or point
            fall = before["loss"] - point["loss"]
            share = (before["loss"] - loss) / fall if fall else 0.0
            tokens, seconds = (before[key] + share * (point[key] - before[key]) for key in ("tokens", "seconds"))
            return tokens, seconds
        previous = point
    return None


def _reach(pairs: list[tuple[Run, Run]], tokens_per_step: int, step_cost: StepCost | None) -> dict[str, Any] | None:
    """Where the runs reached the baseline's final loss; None unless that of every seed did.

    The time is the tokens' times the cost of a step. The wall clock of the trainings is beside it.
    """
    places = [(reach(run["validation_curve"], base["loss"]), base) for run, base in pairs]
    found = [(*place, base) for place, base in places if place is not None]
    if len(found) < len(pairs):
        return None
    tokens = statistics.fmean(tokens for tokens, _, _ in found)
    tokens_ratio = Estimate.of_ratios(*(tokens / base["tokens"] for tokens, _, base in found))
    cost = None if step_cost is None else step_cost.ratio
    wall_clock = Estimate.of_ratios(*(seconds / base["train_seconds"] for _, seconds, base in found))
    return {
        "loss": statistics.fmean(base["loss"] for _, _, base in found),
        "tokens": tokens,
        "tokens_ratio": tokens_ratio.to_dict(),
        "seconds": None if step_cost is None else tokens / tokens_per_step * step_cost.milliseconds / 1e3,
        "time_ratio": None if cost is None else tokens_ratio.times(cost).to_dict(),
        "wall_clock_seconds": statistics.fmean(seconds for _, seconds, _ in found),
        "wall_clock_ratio": wall_clock.to_dict(),
    }
