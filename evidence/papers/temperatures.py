"""The inverse temperatures that tokens choose (Zhang et al. 2024, Figure 1)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

import exsel
from evidence.papers.comparing import verdict_of
from evidence.papers.diagnosed_runs import validation_batches, watched_size
from evidence.papers.model_variants import SELECTIVE
from evidence.papers.outcome import Finding, Job, Outcome, Table
from evidence.papers.variant_runs import TrainedRun, train_variant
from exsel.intervals import Estimate
from exsel.report.charts import Chart, Curve

# Characters that occur less often say nothing of their mean.
_LEAST_COUNT = 20
_LISTED = 12
_CLASSES: Mapping[str, Callable[[str], bool]] = {
    "letters": str.isalpha,
    "digits": str.isdecimal,
    "spaces": lambda token: token == " ",
    "line ends": lambda token: token == "\n",
    "underscore": lambda token: token == "_",
    "brackets": lambda token: token in "()[]{}",
    "quotes": lambda token: token in "'\"",
    "other marks": lambda token: token.isprintable() and not token.isspace(),
}


def run_temperatures(job: Job) -> Outcome:
    """The inverse temperatures that a selective model gives its tokens."""
    samples = []
    for seed in job.seeds:
        run = train_variant(job, SELECTIVE, seed=seed)
        model = run.load().to(job.device)
        samples.append([_picture(model, batch, run) for batch in validation_batches(job, run)])
    return temperatures_outcome(samples, size=watched_size(job))


def _picture(model: Any, batch: Mapping[str, Tensor], run: TrainedRun) -> Mapping[str, Any]:
    diagnosis = exsel.diagnose(
        model, [batch], tokenizer=run.data.tokenizer, pictured_tokens=batch["input_ids"].shape[1]
    )
    picture: Mapping[str, Any] = diagnosis.to_dict()["pictures"][0]
    return picture


def temperatures_outcome(samples: Sequence[Sequence[Mapping[str, Any]]], *, size: str) -> Outcome:
    """The temperatures that tokens have.

    Args:
        samples: the ``pictures`` of diagnoses, several a model, a model a seed.
        size: what was looked at.
    """
    findings: list[Finding] = []
    charts: list[Chart] = []
    means: dict[str, dict[str, float]] = {}
    claims: list[bool | None] = []
    counts: dict[str, int] = {}
    for metric, symbol in (("query_temperature", "τ_q"), ("value_temperature", "τ_v")):
        shares, deviations, by_class = [], [], defaultdict(list)
        gathered: dict[str, list[float]] = defaultdict(list)
        for pictures in samples:
            values = _by_token(pictures, metric)
            shares.append(explained_share(values))
            deviations.append(statistics.pstdev([value for each in values.values() for value in each]))
            for token, each in values.items():
                gathered[token] += each
            for name in _CLASSES:
                members = [value for token, each in values.items() if class_of(token) == name for value in each]
                if members:
                    by_class[name].append(statistics.fmean(members))
        share = Estimate.of(*shares)
        claims.append(share.holds(1))
        findings += [
            Finding(
                quantity=f"share of {symbol}'s variance that the token explains (adjusted)",
                ours=share,
                expected="above 0",
                holds=claims[-1],
                digits=3,
            ),
            Finding(quantity=f"standard deviation of {symbol} over tokens", ours=Estimate.of(*deviations)),
        ]
        means[symbol] = {token: statistics.fmean(each) for token, each in gathered.items()}
        counts = {token: len(each) for token, each in gathered.items()}
        charts.append(_class_chart(metric, symbol, by_class))
    common = [token for token, count in counts.items() if count >= _LEAST_COUNT]
    ordered = sorted(common, key=lambda token: means["τ_q"][token])
    listed = ordered if len(ordered) <= 2 * _LISTED else [*ordered[:_LISTED], *ordered[-_LISTED:]]
    rows = tuple(
        (repr(token), f"{means['τ_q'][token]:.4f}", f"{means['τ_v'][token]:.4f}", f"{counts[token]:,}")
        for token in listed
    )
    first, last = (repr(listed[0]), repr(listed[-1])) if listed else ("–", "–")
    conclusion = (
        f"Which token it is explains {findings[0].ours.mean:.0%} of the variance of τ_q and "
        f"{findings[2].ours.mean:.0%} of τ_v; {first} has the lowest τ_q, {last} the highest."
    )
    table = Table(
        title=f"Inverse temperatures by token, lowest and highest τ_q (tokens that occur {_LEAST_COUNT} times or more)",
        headings=("token", "mean τ_q", "mean τ_v", "count"),
        rows=rows,
    )
    return Outcome(
        verdict=verdict_of(claims),
        conclusion=conclusion,
        size=size,
        findings=tuple(findings),
        charts=tuple(charts),
        tables=(table,),
    )


def _by_token(pictures: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """The mean over layers and heads at each place, by token."""
    found: dict[str, list[float]] = defaultdict(list)
    for picture in pictures:
        heads = [head for layer in picture["layers"] for head in layer["values"][metric]]
        for index, token in enumerate(picture["tokens"]):
            found[token].append(statistics.fmean(head[index] for head in heads))
    return found


def class_of(token: str) -> str:
    """The kind of character that a token is, a name of the chart."""
    return next((name for name, is_one in _CLASSES.items() if len(token) == 1 and is_one(token)), "other tokens")


def explained_share(values: Mapping[str, Sequence[float]]) -> float:
    """The share of the variance of ``values`` that lies between their groups, less what chance would put there.

    1 − (within / (n − k)) / (total / (n − 1)), with sums of squares, n values and k groups: 0 on average where the
    groups mean nothing.
    """
    everything = [value for each in values.values() for value in each]
    mean = statistics.fmean(everything)
    total = sum((value - mean) ** 2 for value in everything)
    within = 0.0
    for each in values.values():
        centre = statistics.fmean(each)
        within += sum((value - centre) ** 2 for value in each)
    freedom = len(everything) - len(values)
    if freedom == 0 or total == 0:
        return 0.0
    return 1 - (within / freedom) / (total / (len(everything) - 1))


def _class_chart(metric: str, symbol: str, by_class: Mapping[str, Sequence[float]]) -> Chart:
    estimates = [Estimate.of(*values) for values in by_class.values()]
    curve = Curve.of("selective", range(len(estimates)), estimates, style="points")
    kind = "queries" if metric == "query_temperature" else "values"
    return Chart(
        name=metric.replace("_", "-"),
        title=f"Inverse temperature of {kind} by kind of character",
        x_label="",
        y_label=f"mean {symbol}",
        curves=(curve,),
        categories=tuple(by_class),
    )
