"""The table of a comparison: one row for each variant and learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from exsel.variants import BASELINE

Run = Mapping[str, Any]


def summarise(runs: Sequence[Run], tokens_per_step: int) -> list[dict[str, Any]]:
    """The rows of the table.

    Differences and ratios are between runs of the same seed and learning rate, then averaged over the seeds.

    Args:
        runs: results of :func:`exsel.training.run.train_run`.
        tokens_per_step: of every run.
    """
    groups: dict[tuple[str, float], list[Run]] = {}
    for variant in dict.fromkeys(run["variant"] for run in runs):
        for run in sorted(runs, key=lambda run: float(run["learning_rate"])):
            if run["variant"] == variant:
                groups.setdefault((variant, run["learning_rate"]), []).append(run)
    rows = []
    for (variant, learning_rate), members in groups.items():
        baselines = {run["seed"]: run for run in groups.get((BASELINE, learning_rate), []) if variant != BASELINE}
        pairs = [(run, baselines[run["seed"]]) for run in members if run["seed"] in baselines]
        step = statistics.median(run["ms_per_step"] for run in members)
        parameters, new_parameters = members[0]["parameters"], members[0]["new_parameters"]
        rows.append(
            {
                "variant": variant,
                "learning_rate": learning_rate,
                "best": False,
                "parameters": parameters,
                "new_parameters": new_parameters,
                "new_parameters_percent": 100 * new_parameters / (parameters - new_parameters),
                "loss": _over_seeds([run["loss"] for run in members]),
                "bits_per_byte": _over_seeds([run["bits_per_byte"] for run in members]),
                "difference": _over_seeds([run["loss"] - base["loss"] for run, base in pairs]) if pairs else None,
                "ms_per_step": {
                    "median": step,
                    "spread": statistics.median(run["ms_per_step_spread"] for run in members),
                },
                "tokens_per_second": tokens_per_step / step * 1e3,
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in members),
                "reach": _mean_reach(pairs) if pairs else None,
            }
        )
    for variant in {row["variant"] for row in rows}:
        own = [row for row in rows if row["variant"] == variant]
        min(own, key=lambda row: row["loss"]["mean"])["best"] = True
    return rows


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


def _over_seeds(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "values": values}


def _mean_reach(pairs: list[tuple[Run, Run]]) -> dict[str, float] | None:
    """The mean over the seeds; None unless the run of every seed reached the loss."""
    places = [(reach(run["validation_curve"], base["loss"]), base) for run, base in pairs]
    found = [(*place, base) for place, base in places if place is not None]
    if len(found) < len(pairs):
        return None
    return {
        "loss": statistics.fmean(base["loss"] for _, _, base in found),
        "tokens": statistics.fmean(tokens for tokens, _, _ in found),
        "seconds": statistics.fmean(seconds for _, seconds, _ in found),
        "tokens_ratio": statistics.fmean(tokens / base["tokens"] for tokens, _, base in found),
        "seconds_ratio": statistics.fmean(seconds / base["train_seconds"] for _, seconds, base in found),
    }
