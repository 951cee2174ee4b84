"""The runs of a comparison: those that choose a learning rate, and those that its results are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from exsel.errors import ExselError
from exsel.training.progress import PlannedRun
from exsel.training.settings import Settings
from exsel.variants import BASELINE, CHOOSING_SEED, OWN_RATES, VARIANTS, Variant


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """The runs in their order.

    Args:
        choosing: of each variant with several learning rates, a run for each rate and choosing seed.
        results: a run for each variant and seed. Of a variant with several rates they have the first one, until
            :meth:`at` gives them the chosen one.
    """

    choosing: tuple[Settings, ...]
    results: tuple[Settings, ...]

    @property
    def runs(self) -> list[Settings]:
        """All of them."""
        return [*self.choosing, *self.results]

    def with_runs(self, runs: Sequence[Settings]) -> Self:
        """The same plan with other settings of its runs, given in their order."""
        count = len(self.choosing)
        return replace(self, choosing=tuple(runs[:count]), results=tuple(runs[count:]))

    def at(self, rates: Mapping[str, float]) -> list[Settings]:
        """The runs of the results at the chosen learning rates, by variant."""
        return [replace(run, learning_rate=rates.get(run.variant.name, run.learning_rate)) for run in self.results]

    def shown(self) -> list[PlannedRun]:
        """The runs as they are shown: by what tells them apart, each beside the baseline's of its seed."""
        several = len({run.seed for run in self.results}) > 1
        names: dict[tuple[str, float | None, int], str] = {}
        for index, run in enumerate(self.runs, start=1):
            is_choosing = index <= len(self.choosing)
            words = f", lr {run.learning_rate:g}" if is_choosing else ""
            words += f", seed {run.seed}" if several or is_choosing else ""
            key = run.variant.name, run.learning_rate if is_choosing else None, run.seed
            names[key] = f"{run.variant.name}{words} ({index} of {len(self.runs)})"
        return [
            PlannedRun(
                name=name, steps=run.steps, baseline=None if variant == BASELINE else names.get((BASELINE, rate, seed))
            )
            for ((variant, rate, seed), name), run in zip(names.items(), self.runs, strict=True)
        ]


def run_name(run: Settings) -> str:
    """The name of a run's folder."""
    return f"{run.variant.name}-lr{run.learning_rate}-seed{run.seed}"


def plan_runs(
    settings: Settings,
    *,
    variants: Sequence[Variant],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    choosing_seeds: Sequence[int] = (CHOOSING_SEED,),
) -> ComparisonPlan:
    """Plan a comparison: the runs of a seed together, the baseline first.

    Args:
        settings: of all runs; each run has its own variant, learning rates and seed.
        variants: one or more; recipes come after the variants that have a name in :data:`exsel.variants.VARIANTS`.
        learning_rates: the peak learning rates of each variant that has none of its own. Of several, the one with the
            lowest loss is chosen for each variant.
        seeds, choosing_seeds: of the runs of each variant, and of those that choose its learning rate.

    Raises:
        ExselError: nothing to run, something named twice, or a seed that both chooses and makes a result.
    """
    own = {variant.name: variant.learning_rates or tuple(learning_rates) for variant in variants}
    swept = [name for name, rates in own.items() if len(rates) > 1]
    for what, values in (
        ("variants", [variant.name for variant in variants]),
        ("lr", learning_rates),
        ("seeds", seeds),
        ("choosing-seeds", choosing_seeds),
        *((f"lr of {name}", rates) for name, rates in own.items()),
    ):
        if not values:
            raise ExselError(f"--{what} names nothing to run")
        if len(set(values)) < len(values):
            raise ExselError(f"--{what} names the same one twice: {', '.join(map(str, values))}")
    if swept and (both := sorted({*seeds} & {*choosing_seeds})):
        raise ExselError(
            f"seed {both[0]} is one of --choosing-seeds and of --seeds: what chooses a learning rate may make no result"
        )
    order = {name: place for place, name in enumerate(VARIANTS)}
    ordered = sorted(variants, key=lambda variant: order.get(variant.name, len(order)))

    def settle(variant: Variant, learning_rate: float, seed: int) -> Settings:
        return replace(
            settings,
            variant=variant,
            learning_rate=learning_rate,
            seed=seed,
            **{name: getattr(variant, name) or getattr(settings, name) for name in OWN_RATES},
        )

    return ComparisonPlan(
        choosing=tuple(
            settle(variant, rate, seed)
            for rate in dict.fromkeys(rate for name in swept for rate in own[name])
            for seed in choosing_seeds
            for variant in ordered
            if variant.name in swept and rate in own[variant.name]
        ),
        results=tuple(settle(variant, own[variant.name][0], seed) for seed in seeds for variant in ordered),
    )
