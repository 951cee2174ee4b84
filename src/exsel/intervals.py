"""A number over seeds or rounds, with the one kind of interval that exsel shows: 95%, Student's t."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number over seeds: its mean, and the 95% confidence interval of the mean (Student's t).

    ``low`` and ``high`` are ``None`` with one seed, and where there is nothing random.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, *values: float) -> Self:
        """From one value a seed."""
        if not values:
            raise ValueError("an estimate needs a value")
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(values=values, mean=mean, low=None, high=None)
        from scipy.special import stdtrit  # takes a second: only where there are seeds to sum up

        margin = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(values=values, mean=mean, low=mean - margin, high=mean + margin)

    @classmethod
    def of_ratios(cls, *values: float) -> Self:
        """From one positive ratio a seed: the geometric mean, and the interval of the logarithms.

        It says the same of a ratio and of its inverse, and its interval stays above 0.
        """
        if not all(value > 0 for value in values):
            raise ValueError(f"ratios must be positive, got {values}")
        return cls._exponential(values, cls.of(*map(math.log, values)))

    def times(self, other: Self) -> Self:
        """The product of this ratio and an independent one, whose relative errors add as squares.

        Its values are this one's, each times the other's mean.
        """
        mean = math.log(self.mean * other.mean)
        values = tuple(value * other.mean for value in self.values)
        if self.high is None or other.high is None:
            return type(self)(values=values, mean=math.exp(mean), low=None, high=None)
        margin = math.hypot(math.log(self.high / self.mean), math.log(other.high / other.mean))
        return self._exponential(values, Estimate(values=(), mean=mean, low=mean - margin, high=mean + margin))

    @classmethod
    def _exponential(cls, values: tuple[float, ...], of_logarithms: Estimate) -> Self:
        low, high = of_logarithms.low, of_logarithms.high
        return cls(
            values=values,
            mean=math.exp(of_logarithms.mean),
            low=None if low is None else math.exp(low),
            high=None if high is None else math.exp(high),
        )

    def sign(self, neutral: float = 0.0) -> int:
        """−1 or 1 where the whole interval lies on one side of ``neutral``; else 0, which is also all one seed tells.

        Args:
            neutral: the value of no difference: 0 of a difference, 1 of a ratio.
        """
        if self.low is None or self.high is None:
            return 0
        return (self.low > neutral) - (self.high < neutral)

    def less(self, other: Estimate) -> Estimate:
        """The difference, seed by seed."""
        return Estimate.of(*(one - two for one, two in zip(self.values, other.values, strict=True)))

    def holds(self, sign: int) -> bool | None:
        """Whether it lies on the side of 0 that a claim has it on, −1 or 1; ``None``: that cannot be told."""
        return None if self.sign() == 0 else self.sign() == sign

    def seeds_to_tell(self) -> int | None:
        """About how many seeds would tell a difference of this mean and deviation from 0; ``None``: unknown.

        A little above (1.96 s / mean)², for the t distribution's tails.
        """
        if len(self.values) < 2 or self.mean == 0:
            return None
        return math.ceil((1.96 * statistics.stdev(self.values) / self.mean) ** 2) + 3

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "values": list(self.values)}
