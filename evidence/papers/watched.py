"""What attention does inside models that were trained with each mechanism: the figures for which a model is watched."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

import exsel
from evidence.papers.comparing import line, verdict_of
from evidence.papers.model_variants import BASELINE, EXCLUSIVE, SELECTIVE, Variant
from evidence.papers.outcome import Estimate, Finding, Job, Outcome, Table
from evidence.papers.variant_runs import SIZES, TrainedRun, describe_size, train_variant
from exsel.data import collate
from exsel.report.charts import Chart, Curve

# Sequences that a trained model is watched on, by budget.
_SEQUENCES = {"smoke": 2, "cpu": 16, "gpu": 64}
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

Layers = Sequence[Mapping[str, Any]]


def run_bias(job: Job) -> Outcome:
    """The attention similarity bias by layer, of plain and exclusive models."""
    return bias_outcome(_watch(job, BASELINE), _watch(job, EXCLUSIVE), size=_size(job))


def run_spikiness(job: Job) -> Outcome:
    """Spikiness and norms of plain and selective models."""
    return spikiness_outcome(_watch(job, BASELINE), _watch(job, SELECTIVE), size=_size(job))


def run_temperatures(job: Job) -> Outcome:
    """The inverse temperatures that a selective model gives its tokens."""
    samples = []
    for seed in job.seeds:
        run = train_variant(job, SELECTIVE, seed=seed)
        model = run.load().to(job.device)
        samples.append([_picture(model, batch, run) for batch in _batches(job, run)])
    return temperatures_outcome(samples, size=_size(job))


def _watch(job: Job, variant: Variant) -> list[Layers]:
    """The layers of the variant's diagnosis, a model a seed."""
    watched = []
    for seed in job.seeds:
        run = train_variant(job, variant, seed=seed)
        diagnosis = exsel.diagnose(run.load().to(job.device), _batches(job, run))
        watched.append(diagnosis.to_dict()["layers"])
    return watched


def _picture(model: Any, batch: Mapping[str, Tensor], run: TrainedRun) -> Mapping[str, Any]:
    diagnosis = exsel.diagnose(
        model, [batch], tokenizer=run.data.tokenizer, pictured_tokens=batch["input_ids"].shape[1]
    )
    picture: Mapping[str, Any] = diagnosis.to_dict()["pictures"][0]
    return picture


def _batches(job: Job, run: TrainedRun) -> list[dict[str, Tensor]]:
    """Validation sequences, one a batch."""
    validation = run.data.validation
    rows = [validation[index] for index in range(min(_SEQUENCES[job.budget], len(validation)))]
    return [{"input_ids": collate([row])["input_ids"].to(job.device)} for row in rows]


def _size(job: Job) -> str:
    watched = f"{_SEQUENCES[job.budget]} validation sequences of {SIZES[job.budget].seq_len} tokens"
    return f"{describe_size(job)}; watched on {watched}"


def _means(models: Sequence[Layers], metric: str) -> list[Estimate]:
    """Layer by layer, over the seeds."""
    return [
        Estimate.of(*(layers[index]["metrics"][metric]["mean"] for layers in models)) for index in range(len(models[0]))
    ]


def _overall(models: Sequence[Layers], metric: str) -> Estimate:
    """The mean over the layers, over the seeds."""
    return Estimate.of(*(statistics.fmean(layer["metrics"][metric]["mean"] for layer in layers) for layers in models))


def _over(left: Estimate, right: Estimate) -> Estimate:
    return Estimate.of(*(a / b for a, b in zip(left.values, right.values, strict=True)))


def _by_layer(label: str, models: Sequence[Layers], metric: str, *, dashed: bool = False) -> Curve:
    estimates = _means(models, metric)
    return line(label, range(len(estimates)), estimates, style="dashed" if dashed else "line")


def bias_outcome(plain: Sequence[Layers], exclusive: Sequence[Layers], *, size: str) -> Outcome:
    """The similarity bias from watched models.

    Args:
        plain, exclusive: the ``layers`` of a diagnosis, a model a seed.
        size: what was looked at.
    """
    similarity, values = _overall(plain, "similarity"), _overall(plain, "value_similarity")
    above = similarity.less(values)
    by_layer = _means(plain, "similarity")
    growth = by_layer[-1].less(by_layer[0])
    centred, weight = _overall(plain, "centred_similarity"), _overall(plain, "self_weight")
    before, after = _overall(exclusive, "similarity"), _overall(exclusive, "similarity_after")
    is_above, is_growing = above.holds(1), growth.holds(1)
    findings = (
        Finding(quantity="mean cos(yᵢ, vᵢ), plain", ours=similarity),
        Finding(quantity="mean cos(vᵢ, vⱼ), plain", ours=values),
        Finding(quantity="the first less the second", ours=above, expected="above 0", holds=is_above),
        Finding(
            quantity="cos(yᵢ, vᵢ), last layer less first", ours=growth, expected="grows with depth", holds=is_growing
        ),
        Finding(quantity="mean self-weight aᵢᵢ, plain", ours=weight, expected="small"),
        Finding(
            quantity="mean cos(yᵢ, vᵢ) without the values' common direction, plain",
            ours=centred,
            expected="not in the paper: what a shared direction does not explain",
        ),
        Finding(quantity="mean cos(yᵢ, vᵢ), exclusive, before the projection", ours=before),
        Finding(
            quantity="mean cos(zᵢ, vᵢ), exclusive",
            ours=after,
            published=0.0,
            expected="0 by construction",
            holds=all(abs(value) < 1e-4 for value in after.values),
        ),
    )
    conclusion = (
        f"In plain models cos(yᵢ, vᵢ) is {similarity.mean:.2f} where two values have {values.mean:.2f}, from "
        f"{by_layer[0].mean:.2f} in the first layer to {by_layer[-1].mean:.2f} in the last, with a self-weight of "
        f"{weight.mean:.2f}; without the values' common direction {centred.mean:.2f} remains."
    )
    chart = Chart(
        name="layers",
        title="Attention similarity bias by layer",
        x_label="layer",
        y_label="mean cosine, or weight",
        curves=(
            _by_layer("plain: cos(yᵢ, vᵢ)", plain, "similarity"),
            _by_layer("plain: without common direction", plain, "centred_similarity", dashed=True),
            _by_layer("plain: cos(vᵢ, vⱼ)", plain, "value_similarity"),
            _by_layer("plain: self-weight aᵢᵢ", plain, "self_weight"),
            _by_layer("exclusive: before projecting", exclusive, "similarity", dashed=True),
            _by_layer("exclusive: cos(zᵢ, vᵢ)", exclusive, "similarity_after"),
        ),
        caption="What attention puts out points along the token's own value, more than its weight on itself asks for.",
    )
    return Outcome(
        verdict=verdict_of((is_above, is_growing)), conclusion=conclusion, size=size, findings=findings, charts=(chart,)
    )


def spikiness_outcome(plain: Sequence[Layers], selective: Sequence[Layers], *, size: str) -> Outcome:
    """Spikiness and norms from watched models; arguments as :func:`bias_outcome`."""
    spiky, spiky_selective = _overall(plain, "spikiness"), _overall(selective, "spikiness")
    change = spiky_selective.less(spiky)
    norm = _over(_overall(plain, "token_norm"), _overall(selective, "token_norm"))
    operator = _over(_overall(plain, "operator_norm"), _overall(selective, "operator_norm"))
    is_spikier = change.holds(-1)
    is_smaller = norm.less(Estimate.of(*(1.0 for _ in norm.values))).holds(1)
    findings = (
        Finding(quantity="spikiness ‖p‖₁/(‖p‖₂² L), plain", ours=spiky, published=0.39),
        Finding(quantity="spikiness, selective", ours=spiky_selective, published=0.26),
        Finding(
            quantity="selective less plain",
            ours=change,
            published=0.26 - 0.39,
            expected="lower is spikier",
            holds=is_spikier,
        ),
        Finding(
            quantity="‖Wᵀx‖, plain over selective",
            ours=norm,
            published=3.0,
            expected="above 1",
            holds=is_smaller,
            digits=3,
        ),
        Finding(quantity="‖W_q W_kᵀ‖, plain over selective", ours=operator, expected="above 1", digits=3),
    )
    conclusion = (
        f"Spikiness is {spiky_selective.mean:.3f} with temperatures and {spiky.mean:.3f} without (lower is spikier); "
        f"the plain model's ‖Wᵀx‖ is {norm.mean:.2f} times the selective one's."
    )
    charts = tuple(
        Chart(
            name=name,
            title=title,
            x_label="layer",
            y_label=label,
            curves=(_by_layer("plain", plain, metric), _by_layer("selective", selective, metric)),
        )
        for name, metric, title, label in (
            ("spikiness", "spikiness", "Spikiness by layer", "‖p‖₁ / (‖p‖₂² L)"),
            ("norm", "token_norm", "Norm along a token, by layer", "mean ‖Wᵀx‖"),
        )
    )
    return Outcome(
        verdict=verdict_of((is_spikier, is_smaller)), conclusion=conclusion, size=size, findings=findings, charts=charts
    )


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
    curve = line("selective", range(len(estimates)), estimates, style="points")
    kind = "queries" if metric == "query_temperature" else "values"
    return Chart(
        name=metric.replace("_", "-"),
        title=f"Inverse temperature of {kind} by kind of character",
        x_label="",
        y_label=f"mean {symbol}",
        curves=(curve,),
        categories=tuple(by_class),
    )
