"""The two sweeps of exclusive attention: over learning rates, and over lengths at constant tokens a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from evidence.papers.comparing import Trained, claimed_gain, finding, interval, train_all, verdict_of
from evidence.papers.model_variants import BASELINE, EXCLUSIVE
from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table
from evidence.papers.variant_runs import SIZES, describe_size
from exsel.intervals import Estimate
from exsel.report import formatting
from exsel.report.charts import Chart, Curve

# The paper's four rates, 1e-4, 2e-4, 4e-4 and 6e-4, over the one that it tuned for the baseline of that size.
_RATES = (1 / 4, 1 / 2, 1.0, 3 / 2)
_LENGTHS: Mapping[Budget, tuple[int, ...]] = {
    "smoke": (16, 32, 64),
    "cpu": (64, 128, 256, 512, 1024),
    "gpu": (256, 512, 1024, 2048, 4096),
}

_GAIN = claimed_gain(EXCLUSIVE)


def run_learning_rate(job: Job) -> Outcome:
    """The gain at each of four learning rates, and how it changes from one to the next."""
    tuned = SIZES[job.budget].learning_rate
    rates = [tuned * factor for factor in _RATES]
    return sweep_outcome(
        {rate: train_all(job, (BASELINE, EXCLUSIVE), learning_rate=rate) for rate in rates},
        name="learning rate",
        said=lambda rate: f"{rate:.2g}",
        slope_sign=None,
        claims_each=True,
        size=describe_size(job),
    )


def run_length(job: Job) -> Outcome:
    """The gain at each length, and its slope; a step, and the whole training, has the same tokens at every length."""
    return sweep_outcome(
        {length: train_all(job, (BASELINE, EXCLUSIVE), seq_len=length) for length in _LENGTHS[job.budget]},
        name="length",
        said=lambda length: f"{length:.0f} tokens",
        slope_sign=1,
        claims_each=False,
        size=f"{describe_size(job)}; at each length as many tokens a step and in all",
    )


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """By least squares, over log2 of the places: how much ``values`` change when a place doubles."""
    x = [math.log2(place) for place in places]
    x_mean, y_mean = math.fsum(x) / len(x), math.fsum(values) / len(values)
    rise = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, values, strict=True))
    return rise / math.fsum((a - x_mean) ** 2 for a in x)


def sweep_outcome(
    trained: Mapping[float, Trained],
    *,
    name: str,
    said: Callable[[float], str],
    slope_sign: Literal[1] | None,
    claims_each: bool,
    size: str,
) -> Outcome:
    """What the gain does along what is swept.

    Args:
        trained: the baseline and exclusive attention, by what is swept.
        name: what is swept, in words.
        said: one of its values, in words.
        slope_sign: 1: the claim is that the gain grows; ``None``: that it is nearly constant, which is shown and not
            decided.
        claims_each: whether the claim has a gain at every value.
        size: what was looked at, in words.
    """
    places = list(trained)
    gains = [each.estimate(_GAIN) for each in trained.values()]
    seeds = range(len(gains[0].values))
    slopes = Estimate.of(*(slope(places, [each.values[seed] for each in gains]) for seed in seeds))
    grows = None if slope_sign is None else slopes.holds(slope_sign)
    per_place = [finding(_GAIN, each) for each in gains]
    claims = [found.holds for found in per_place] if claims_each else [grows]
    findings = [
        Finding(
            quantity=f"gain of {EXCLUSIVE.label} at {name} {said(place)}, nats",
            ours=found.ours,
            expected=found.expected if claims_each else "",
            holds=found.holds if claims_each else None,
        )
        for place, found in zip(places, per_place, strict=True)
    ]
    of_slope = Finding(
        quantity=f"change of the gain when the {name} doubles, nats",
        ours=slopes,
        expected="near 0" if slope_sign is None else "above 0",
        holds=grows,
    )
    return Outcome(
        verdict=verdict_of(claims),
        conclusion=f"{_each_in_words(gains)} {_slope_in_words(slopes, name)}",
        size=size,
        findings=tuple([*findings, of_slope] if claims_each else [of_slope, *findings]),
        charts=(
            Chart(
                name="gain",
                title=f"Gain of exclusive attention by {name}",
                x_label=name,
                y_label="gain, nats a token",
                curves=(Curve.of(EXCLUSIVE.label, places, gains),),
                log_x=True,
                caption="The mean over the seeds and its 95% interval; above 0 is better than the baseline.",
            ),
            Chart(
                name="loss",
                title=f"Final validation loss by {name}",
                x_label=name,
                y_label="nats a token",
                curves=tuple(
                    Curve.of(variant.label, places, [_losses(each, variant.name) for each in trained.values()])
                    for variant in (BASELINE, EXCLUSIVE)
                ),
                log_x=True,
            ),
        ),
        tables=(_table(trained, name, said),),
    )


def _losses(trained: Trained, variant: str) -> Estimate:
    return Estimate.of(*(result["loss"] for result in trained.results[variant]))


def _each_in_words(gains: Sequence[Estimate]) -> str:
    above = sum(each.sign() > 0 for each in gains)
    below = sum(each.sign() < 0 for each in gains)
    means = ", ".join(formatting.signed(each.mean) for each in gains)
    worse = f", worse at {below}" if below else ""
    return f"Exclusive attention is better at {above} of {len(gains)} places{worse} (gains {means} nats)."


def _slope_in_words(slopes: Estimate, name: str) -> str:
    change = f"{formatting.signed(slopes.mean)} nats a doubling of the {name}"
    words = {1: "The gain grows", -1: "The gain shrinks", 0: "Whether the gain changes is not decided"}
    return f"{words[slopes.sign()]}: {change}."


def _table(trained: Mapping[float, Trained], name: str, said: Callable[[float], str]) -> Table:
    rows = []
    for place, each in trained.items():
        reached = each.reached(EXCLUSIVE)
        rows.append(
            (
                said(place),
                *(interval(_losses(each, variant.name), 4) for variant in (BASELINE, EXCLUSIVE)),
                interval(each.estimate(_GAIN), 4),
                "not reached" if reached is None else interval(reached[0], 3),
            )
        )
    headings = (
        name,
        "baseline's loss, nats",
        "exclusive's loss, nats",
        "gain, nats",
        "tokens to the baseline's loss, over its own",
    )
    return Table(title=f"By {name}, with 95% intervals over the seeds", headings=headings, rows=tuple(rows))
