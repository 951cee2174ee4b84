"""Variants trained with the same seeds, and what their losses say: differences seed by seed, over all seeds.

An experiment is a :class:`Comparison`: what is trained, and the contrasts of losses that its claim speaks of. The
verdict and the conclusion follow from the numbers: a contrast is told only where its 95% interval leaves out 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evidence.papers.model_variants import BASELINE, ModelVariant
from evidence.papers.outcome import Finding, Job, Outcome, Table, Verdict
from evidence.papers.variant_runs import describe_size, train_variant
from exsel.intervals import Estimate
from exsel.report import formatting
from exsel.report.charts import Chart, Curve
from exsel.training.summary import reach

#: A run's result, as :func:`exsel.training.run.train_run` gives it.
Result = Mapping[str, Any]

_NATS = 4
_RATIO = 3


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A difference of losses, taken seed by seed.

    Args:
        subject: what it is about, in the conclusion and in charts.
        quantity: what the number is, with its unit.
        terms: the sum of factor · loss over these; factors add up to 0.
        above, below, between: what is said of the subject where the interval lies above 0, below 0, or around it.
        expected: what the claim says of it, in words; empty: it is there to be read beside the others.
        sign: on which side of 0 the claim has it; ``None``: it is no part of the verdict.
        share: of the training after which the losses are taken.
    """

    subject: str
    quantity: str
    terms: tuple[tuple[float, ModelVariant], ...]
    above: str
    below: str
    between: str
    expected: str = ""
    sign: Literal[-1, 1] | None = None
    share: float = 1.0

    def holds(self, estimate: Estimate) -> bool | None:
        """Whether the claim holds; ``None``: it has none, or the seeds do not tell."""
        return None if self.sign is None else estimate.holds(self.sign)


def gain(
    variant: ModelVariant,
    base: ModelVariant = BASELINE,
    *,
    expected: str = "",
    sign: Literal[-1, 1] | None = None,
    share: float = 1.0,
) -> Contrast:
    """How much lower the loss of ``variant`` is than that of ``base``, in nats a token: above 0 is better."""
    when = "" if share == 1 else f" after {share:.0%} of the tokens"
    against = f"the {base.label}" if base is BASELINE else base.label
    return Contrast(
        subject=variant.label + when,
        quantity=f"gain of {variant.label} over {against}{when}, nats",
        terms=((1.0, base), (-1.0, variant)),
        above=f"better than {against}",
        below=f"worse than {against}",
        between=f"not told apart from {against}",
        expected=expected,
        sign=sign,
        share=share,
    )


def claimed_gain(variant: ModelVariant, base: ModelVariant = BASELINE, *, share: float = 1.0) -> Contrast:
    """A :func:`gain` that the claim says is there."""
    return gain(variant, base, expected="above 0", sign=1, share=share)


def contrast_of_contrasts(
    first: Contrast, second: Contrast, *, subject: str, quantity: str, above: str, below: str, between: str
) -> Contrast:
    """``first`` less ``second``, seed by seed; no part of the verdict."""
    terms = (*first.terms, *((-factor, variant) for factor, variant in second.terms))
    return Contrast(subject=subject, quantity=quantity, terms=terms, above=above, below=below, between=between)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An experiment that trains.

    Args:
        contrasts: what is looked at, that which says most first.
        drawn: variants whose validation curves are drawn; the first is what others are compared with.
        timed: variants of which findings say how soon they reach the baseline's loss; among ``drawn``.
        published_speed_up: the paper's, of the first one timed, in steps.
    """

    contrasts: tuple[Contrast, ...]
    drawn: tuple[ModelVariant, ...]
    timed: tuple[ModelVariant, ...] = ()
    published_speed_up: float | None = None

    @property
    def variants(self) -> tuple[ModelVariant, ...]:
        """All that is trained, the baseline first."""
        named = [*self.drawn, *(variant for contrast in self.contrasts for _, variant in contrast.terms)]
        return tuple({variant.name: variant for variant in (BASELINE, *named)}.values())


@dataclass(frozen=True)
class Trained:
    """Results by the variant's name, one for each seed in the same order."""

    results: Mapping[str, Sequence[Result]]

    def estimate(self, contrast: Contrast) -> Estimate:
        """The contrast over the seeds."""
        seeds = range(len(next(iter(self.results.values()))))
        return Estimate.of(*(self._value(contrast, seed) for seed in seeds))

    def _value(self, contrast: Contrast, seed: int) -> float:
        return sum(
            factor * _loss_after(self.results[variant.name][seed], contrast.share) for factor, variant in contrast.terms
        )

    def ratio(self, variant: ModelVariant, quantity: str) -> Estimate:
        """``quantity`` of a variant over that of the baseline, seed by seed."""
        pairs = self._pairs(variant)
        return Estimate.of(*(result[quantity] / base[quantity] for result, base in pairs))

    def reached(self, variant: ModelVariant) -> tuple[Estimate, Estimate] | None:
        """Tokens and seconds to the baseline's final loss, over the baseline's own of all its training.

        ``None``: with some seed it is not reached.
        """
        tokens, seconds = [], []
        for result, base in self._pairs(variant):
            place = reach(result["validation_curve"], base["loss"])
            if place is None:
                return None
            tokens.append(place[0] / base["tokens"])
            seconds.append(place[1] / base["train_seconds"])
        return Estimate.of(*tokens), Estimate.of(*seconds)

    def curve(self, variant: ModelVariant, abscissa: str) -> Curve:
        """The validation loss against ``"tokens"`` or ``"seconds"``: means over the seeds, and their intervals."""
        points = list(zip(*(result["validation_curve"] for result in self.results[variant.name]), strict=True))
        losses = [Estimate.of(*(point["loss"] for point in at)) for at in points]
        return Curve.of(variant.label, [statistics.fmean(point[abscissa] for point in at) for at in points], losses)

    def gain_curve(self, variant: ModelVariant, base: ModelVariant) -> Curve:
        """The gain of a variant over another at the same tokens."""
        pairs = zip(self.results[variant.name], self.results[base.name], strict=True)
        curves = [
            [
                (point["tokens"], before["loss"] - point["loss"])
                for point, before in zip(result["validation_curve"], other["validation_curve"], strict=True)
            ]
            for result, other in pairs
        ]
        points = list(zip(*curves, strict=True))
        gains = [Estimate.of(*(value for _, value in at)) for at in points]
        return Curve.of(variant.label, [at[0][0] for at in points], gains)

    def _pairs(self, variant: ModelVariant) -> list[tuple[Result, Result]]:
        return list(zip(self.results[variant.name], self.results[BASELINE.name], strict=True))


def train_all(
    job: Job, variants: Sequence[ModelVariant], *, learning_rate: float | None = None, seq_len: int | None = None
) -> Trained:
    """Train every variant with every seed; those of a seed follow one another, so that a machine's drift is shared."""
    results: dict[str, list[Result]] = {variant.name: [] for variant in variants}
    for seed in job.seeds:
        for variant in variants:
            run = train_variant(job, variant, seed=seed, learning_rate=learning_rate, seq_len=seq_len)
            results[variant.name].append(run.result)
    return Trained(results)


def run_comparison(job: Job, comparison: Comparison) -> Outcome:
    """Train what a comparison needs, and say what came of it."""
    return comparison_outcome(comparison, train_all(job, comparison.variants), size=describe_size(job))


def comparison_outcome(comparison: Comparison, trained: Trained, *, size: str) -> Outcome:
    """What a comparison's runs say.

    Args:
        comparison: of the experiment.
        trained: all of its variants.
        size: what was looked at, in words.
    """
    estimates = [trained.estimate(contrast) for contrast in comparison.contrasts]
    findings = [finding(contrast, estimate) for contrast, estimate in zip(comparison.contrasts, estimates, strict=True)]
    speed_ups = [found for variant in comparison.timed for found in _speed_ups(comparison, trained, variant)]
    return Outcome(
        verdict=verdict_of(
            [found.holds for found, contrast in zip(findings, comparison.contrasts, strict=True) if contrast.sign]
        ),
        conclusion=conclude(comparison.contrasts, estimates),
        size=size,
        findings=(*findings, *speed_ups),
        charts=_charts(comparison, trained, estimates),
        tables=(_table(comparison, trained),),
    )


def finding(contrast: Contrast, estimate: Estimate) -> Finding:
    """A contrast's number."""
    return Finding(
        quantity=contrast.quantity,
        ours=estimate,
        expected=contrast.expected,
        holds=contrast.holds(estimate),
        digits=_NATS,
    )


def verdict_of(claims: Sequence[bool | None]) -> Verdict:
    """Of all parts of a claim together; ``None`` is one that the seeds do not decide."""
    if claims and all(claims):
        return "reproduced"
    if any(claims):
        return "partly"
    return "unclear" if None in claims or not claims else "not reproduced"


def conclude(contrasts: Sequence[Contrast], estimates: Sequence[Estimate]) -> str:
    """What is said of each contrast, those of which the same is said together."""
    said: dict[str, list[str]] = {}
    for contrast, estimate in zip(contrasts, estimates, strict=True):
        words = {1: contrast.above, -1: contrast.below, 0: contrast.between}[estimate.sign()]
        if estimate.sign() == 0:
            seeds = len(estimate.values)
            words += " by 1 seed" if seeds == 1 else f" by {seeds} seeds"
        said.setdefault(words, []).append(f"{contrast.subject} ({formatting.signed(estimate.mean, _NATS)} nats)")
    return " ".join(f"{words[0].upper()}{words[1:]}: {', '.join(subjects)}." for words, subjects in said.items())


def interval(estimate: Estimate, digits: int) -> str:
    """The mean and its interval, as a table shows them."""
    if estimate.low is None or estimate.high is None:
        return formatting.fixed(estimate.mean, digits)
    low, high = formatting.fixed(estimate.low, digits), formatting.fixed(estimate.high, digits)
    return f"{formatting.fixed(estimate.mean, digits)} ({low} to {high})"


def _loss_after(result: Result, share: float) -> float:
    curve = result["validation_curve"]
    return float(curve[max(0, round(share * len(curve)) - 1)]["loss"])


def _speed_ups(comparison: Comparison, trained: Trained, variant: ModelVariant) -> list[Finding]:
    reached = trained.reached(variant)
    if reached is None:
        return []
    published = comparison.published_speed_up if variant is comparison.timed[0] else None
    named = zip(("tokens", "seconds of training"), reached, (published, None), strict=True)
    return [
        Finding(
            quantity=f"{variant.label}: times fewer {unit} to the baseline's loss",
            ours=Estimate.of(*(1 / value for value in ratio.values)),
            published=number,
            digits=2,
        )
        for unit, ratio, number in named
    ] + [
        Finding(
            quantity=f"{variant.label}: time of a step over the baseline's",
            ours=trained.ratio(variant, "ms_per_step"),
            digits=2,
        )
    ]


def _charts(comparison: Comparison, trained: Trained, estimates: Sequence[Estimate]) -> tuple[Chart, ...]:
    base = comparison.drawn[0]
    others = [variant for variant in comparison.drawn if variant is not base]
    gains = Chart(
        name="gains",
        title="Differences seed by seed",
        x_label="",
        y_label="nats a token",
        curves=(Curve.of("difference", range(len(estimates)), estimates, style="points"),),
        categories=tuple(contrast.quantity.removesuffix(", nats") for contrast in comparison.contrasts),
        caption="The mean over the seeds and its 95% interval; at 0 there is no difference.",
    )
    course = Chart(
        name="course",
        title=f"Gain over {base.label} during training",
        x_label="tokens",
        y_label="gain, nats a token",
        curves=tuple(trained.gain_curve(variant, base) for variant in others),
        caption="At the same number of tokens; above 0 is better.",
    )
    losses = tuple(
        Chart(
            name=f"loss-by-{abscissa}",
            title=f"Validation loss by {abscissa}",
            x_label="seconds of training" if abscissa == "seconds" else abscissa,
            y_label="nats a token",
            curves=tuple(trained.curve(variant, abscissa) for variant in comparison.drawn),
        )
        for abscissa in ("tokens", "seconds")
    )
    return (gains, course, *losses)


def _table(comparison: Comparison, trained: Trained) -> Table:
    rows = []
    for variant in comparison.variants:
        results = trained.results[variant.name]
        row = [
            variant.label,
            f"{results[0]['parameters'] - trained.results[BASELINE.name][0]['parameters']:,}",
            interval(Estimate.of(*(result["loss"] for result in results)), _NATS),
        ]
        if variant is BASELINE:
            rows.append((*row, "", "", "", ""))
            continue
        reached = trained.reached(variant)
        ratios = ["not reached"] * 2 if reached is None else [interval(ratio, _RATIO) for ratio in reached]
        step = interval(trained.ratio(variant, "ms_per_step"), _RATIO)
        rows.append((*row, interval(trained.estimate(gain(variant)), _NATS), *ratios, step))
    headings = (
        "variant",
        "parameters more",
        "validation loss, nats",
        "gain over the baseline, nats",
        "tokens to the baseline's loss, over its own",
        "seconds, likewise",
        "time of a step, likewise",
    )
    return Table(title="All variants, with 95% intervals over the seeds", headings=headings, rows=tuple(rows))
