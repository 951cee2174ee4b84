"""What temperatures by degree do for the graph task: its two claims, the temperatures, and on what they depend.

The task and all that the paper leaves open about it: :mod:`evidence.papers.graph_model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.papers.comparing import interval, verdict_of
from evidence.papers.graph_model import (
    LEARNING_RATE,
    MAIN,
    NODES,
    SETTINGS,
    VARIANTS,
    History,
    Setting,
    Tasks,
    Variant,
    draw_tasks,
    slope_by_degree,
    train_models,
)
from evidence.papers.outcome import Budget, Finding, Job, Outcome, Table
from exsel.intervals import Estimate
from exsel.report.charts import Chart, Curve

_PUBLISHED = {"plain": (0.0126, 0.543), "selective": (0.009, 0.358)}


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Steps, and graphs with embeddings a seed: in the main setting, in the others."""

    steps: int
    main_draws: int
    draws: int


_PLANS: Mapping[Budget, _Plan] = {
    "smoke": _Plan(steps=100, main_draws=1, draws=1),
    "cpu": _Plan(steps=20_000, main_draws=12, draws=4),
    "gpu": _Plan(steps=20_000, main_draws=12, draws=4),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One setting's, averaged over the draws of each seed.

    Args:
        steps: of the curves.
        excess, map_error: at each step, by variant.
        norm: ‖W‖ at the end, by variant.
        slope: of the selective one's τ, a neighbour more.
        tau: its τ by degree, for degrees that every seed has.
    """

    steps: tuple[int, ...]
    excess: Mapping[Variant, Sequence[Estimate]]
    map_error: Mapping[Variant, Sequence[Estimate]]
    norm: Mapping[Variant, Estimate]
    slope: Estimate
    tau: Mapping[int, Estimate]


def graph_result(history: History, graphs: Tensor, seeds: int) -> Result:
    """Of models in the order variant, seed, draw.

    Args:
        history: of V · S · R models.
        graphs: of the S · R that each variant has.
        seeds: S.
    """

    def of(values: Tensor) -> dict[Variant, Estimate]:
        each = values.unflatten(0, (len(VARIANTS), seeds, -1)).mean(-1)
        return {variant: Estimate.of(*row.tolist()) for variant, row in zip(VARIANTS, each, strict=True)}

    excesses, errors = [of(row) for row in history.excess], [of(row) for row in history.map_error]
    tau = history.tau.unflatten(0, (len(VARIANTS), -1))[VARIANTS.index("selective")]
    degree = graphs.sum(-1).unflatten(0, (seeds, -1))
    by_degree = {}
    for value in range(1, NODES):
        has = degree == value
        if has.any(-1).any(-1).all():
            of_seed = zip(tau.unflatten(0, (seeds, -1)), has, strict=True)
            by_degree[value] = Estimate.of(*(float(each[where].mean()) for each, where in of_seed))
    return Result(
        steps=history.steps,
        excess={variant: [each[variant] for each in excesses] for variant in VARIANTS},
        map_error={variant: [each[variant] for each in errors] for variant in VARIANTS},
        norm=of(history.norm[-1]),
        slope=Estimate.of(*slope_by_degree(graphs, tau).unflatten(0, (seeds, -1)).mean(-1).tolist()),
        tau=by_degree,
    )


def run_graph(job: Job) -> Outcome:
    """All settings, with each variant, those of one head at once."""
    plan = _PLANS[job.budget]
    width = max(setting.dimension for setting in SETTINGS)
    results: dict[Setting, Result] = {}
    for has_softmax_head in (False, True):
        settings = [setting for setting in SETTINGS if setting.has_softmax_head == has_softmax_head]
        drawn = {
            setting: _draw_all(setting, plan.main_draws if setting == MAIN else plan.draws, job.seeds, width=width)
            for setting in settings
        }
        # Every variant of a model has the same graph, embeddings and start.
        tasks = Tasks.join([each for each in drawn.values() for _ in VARIANTS])
        variants = [variant for each in drawn.values() for variant in VARIANTS for _ in each.graphs]
        history = train_models(
            tasks,
            variants,
            has_softmax_head=has_softmax_head,
            steps=plan.steps,
            progress=job.progress,
        )
        end = 0
        for setting, each in drawn.items():
            begin, end = end, end + len(VARIANTS) * len(each.graphs)
            own = slice(begin, end)
            part = History(
                steps=history.steps,
                excess=history.excess[:, own],
                map_error=history.map_error[:, own],
                norm=history.norm[:, own],
                tau=history.tau[own],
            )
            results[setting] = graph_result(part, each.graphs, len(job.seeds))
    return graph_outcome(
        results,
        size=(
            f"{NODES} tokens, 1 layer, 1 head, {plan.steps:,} full-batch steps of Adam {LEARNING_RATE:g}; "
            f"{plan.main_draws} graphs and embeddings a seed ({plan.draws} in the other settings); no "
            "accelerator needed"
        ),
    )


def _draw_all(setting: Setting, draws: int, seeds: Sequence[int], *, width: int) -> Tasks:
    return Tasks.join([draw_tasks(setting, draws, torch.Generator().manual_seed(seed), width=width) for seed in seeds])


def graph_outcome(results: Mapping[Setting, Result], *, size: str) -> Outcome:
    """What the main setting says of the two claims and of the temperatures, with the others beside it."""
    main = results[MAIN]
    last = {variant: (main.excess[variant][-1], main.map_error[variant][-1]) for variant in VARIANTS}
    findings = []
    for index, (quantity, digits) in enumerate((("cross-entropy excess (nats)", 4), ("ℓ1 error of the map", 3))):
        for variant in VARIANTS:
            published = _PUBLISHED[variant][index] if variant in _PUBLISHED else None
            findings.append(
                Finding(
                    quantity=f"{quantity}, {variant}", ours=last[variant][index], published=published, digits=digits
                )
            )
    gains = {
        "cross-entropy excess, plain less selective (Claim 2)": last["plain"][0].less(last["selective"][0]),
        "ℓ1 error, plain less selective (Claim 1)": last["plain"][1].less(last["selective"][1]),
        "cross-entropy excess, one temperature for all less selective": last["constant temperature"][0].less(
            last["selective"][0]
        ),
    }
    claims = [gain.holds(1) for gain in gains.values()]
    differences = [_PUBLISHED["plain"][index] - _PUBLISHED["selective"][index] for index in (0, 1)]
    for (quantity, gain), holds, published in zip(gains.items(), claims, (*differences, None), strict=True):
        findings.append(
            Finding(quantity=quantity, ours=gain, published=published, expected="above 0", holds=holds, digits=4)
        )
    falls = main.slope.holds(-1)
    findings.append(
        Finding(
            quantity="inverse temperature τ, a neighbour more",
            ours=main.slope,
            expected="below 0: fewer neighbours, lower temperature",
            holds=falls,
            digits=3,
        )
    )
    return Outcome(
        # Selectivity is what is claimed to help: one temperature for all must not do as well.
        verdict=verdict_of((*claims, falls)),
        conclusion=_conclude(results, last, claims[2]),
        size=f"{MAIN.name}; {size}",
        findings=tuple(findings),
        charts=(
            _curves(main.steps, main.excess, "excess", "Cross-entropy excess", "nats above the entropy"),
            _curves(main.steps, main.map_error, "map-error", "Error of the attention map", "Σ |P − P*|"),
            _by_degree(results),
        ),
        tables=(_table(results),),
    )


def _conclude(
    results: Mapping[Setting, Result], last: Mapping[Variant, tuple[Estimate, Estimate]], beyond: bool | None
) -> str:
    (plain_excess, plain_error), (own_excess, own_error) = last["plain"], last["selective"]
    falling = [setting.name for setting, result in results.items() if result.slope.sign() < 0]
    said = {True: "less than", False: "more than", None: "not told apart from"}[beyond]
    return (
        f"After equally many steps the selective model's excess is {own_excess.mean:.4f} nats against "
        f"{plain_excess.mean:.4f}, the ℓ1 error of its map {own_error.mean:.3f} against {plain_error.mean:.3f}. "
        f"With one temperature for all the excess is {last['constant temperature'][0].mean:.4f}: the selective "
        f"one's is {said} that. Fewer neighbours have lower temperatures in {len(falling)} of {len(results)} settings"
        f"{': ' + '; '.join(falling) if falling else ''}."
    )


def _curves(
    steps: Sequence[int], by_variant: Mapping[Variant, Sequence[Estimate]], name: str, title: str, label: str
) -> Chart:
    return Chart(
        name=name,
        title=title,
        x_label="step",
        y_label=label,
        curves=tuple(Curve.of(variant, steps, estimates) for variant, estimates in by_variant.items()),
        caption="Every model takes the same steps of Adam.",
    )


def _by_degree(results: Mapping[Setting, Result]) -> Chart:
    shown = [setting for setting in results if setting.graph is None and not setting.has_softmax_head]
    return Chart(
        name="temperature",
        title="Learned inverse temperature by degree",
        x_label="neighbours",
        y_label="τ",
        curves=tuple(
            Curve.of(setting.name, list(results[setting].tau), list(results[setting].tau.values())) for setting in shown
        ),
        caption="A higher τ is a lower temperature. Degrees that every seed has.",
    )


def _table(results: Mapping[Setting, Result]) -> Table:
    rows = []
    for setting, result in results.items():
        excesses = (interval(result.excess[variant][-1], 4) for variant in VARIANTS)
        errors = (interval(result.map_error[variant][-1], 3) for variant in VARIANTS)
        norms = (interval(result.norm[variant], 1) for variant in VARIANTS)
        rows.append((setting.name, *excesses, *errors, *norms, interval(result.slope, 3)))
    return Table(
        title="Other graphs, dimensions and heads",
        headings=(
            "setting",
            *(f"{quantity}, {variant}" for quantity in ("excess", "ℓ1 error", "‖W‖") for variant in VARIANTS),
            "τ, a neighbour more",
        ),
        rows=tuple(rows),
    )
