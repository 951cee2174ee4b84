"""How a lower bound on an operator norm ‖W‖ is held against matrices, in float64.

The SSA paper's Lemma 1 and Proposition 1 are such bounds. Each is held against matrices that meet its conditions:
random ones, and ones whose norm a descent has made small. Beside each stands the least norm there is, in closed form,
and the norm that inverse temperatures need for the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evidence.papers.outcome import Budget, Finding
from exsel.intervals import Estimate
from exsel.report.charts import Chart, Curve

EPS = torch.finfo(torch.float64).eps
#: D of the matrices whose norm is descended.
DIMENSION = 4
_LEARNING_RATE = 0.05
# The Schatten norm that is descended. It is smooth where the operator norm is not, and never less than it.
_SCHATTEN = 8
# How curves are drawn, by the first words of their labels; the others are lines.
_STYLES: Mapping[str, Literal["dashed", "points"]] = {
    "bound": "dashed", "target": "dashed", "least found": "points", "of whole counts": "points"
}  # fmt: skip


@dataclass
class Check:
    """A lower bound held against matrices: of each seed how many, how many less, and the largest bound / ‖W‖."""

    name: str
    trials: list[int] = field(default_factory=list)
    violations: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def hold(self, bound: Tensor, norm: Tensor, rounding: Tensor | float) -> None:
        """Add a seed; ``rounding`` is relative to the norm. A ratio that is not a number is a violation."""
        ratio = bound / norm
        self.trials.append(ratio.numel())
        self.violations.append(int((~(ratio <= 1 + rounding)).sum()))
        self.ratios.append(float(ratio.max()))

    @property
    def is_kept(self) -> bool:
        """Whether no seed has a violation."""
        return not any(self.violations)

    def findings(self) -> tuple[Finding, ...]:
        """The numbers of all seeds."""
        return (
            of_seeds(f"violations, {self.name}", self.violations, 0, "none", self.is_kept),
            of_seeds(f"trials, {self.name}", self.trials, 0),
            of_seeds(f"largest bound / ‖W‖, {self.name}", self.ratios, 6, "at most 1", self.is_kept),
        )


def of_seeds(
    quantity: str, values: Iterable[float], digits: int, expected: str = "", holds: bool | None = None
) -> Finding:
    """A finding of one value a seed."""
    return Finding(quantity=quantity, ours=Estimate.of(*values), expected=expected, holds=holds, digits=digits)


def worst_ratio(where: str, found: Iterable[Tensor], least: Tensor) -> Finding:
    """How far the descents of all seeds stayed from the least norms in closed form."""
    ratios = [float((norm / least).max()) for norm in found]
    return of_seeds(f"least ‖W‖ found / in closed form, at the worst {where}", ratios, 6, "near 1")


def effort(budget: Budget, starts: int) -> tuple[int, int, int]:
    """Random matrices to try, starts of the descent (``starts`` in a smoke run), and its steps."""
    return (1000, starts, 100) if budget == "smoke" else (100_000, 4, 1000)


def operator_norm(matrix: Tensor) -> Tensor:
    """‖W‖, the largest singular value: ``[..., D, D]`` to ``[...]``."""
    values: Tensor = torch.linalg.svdvals(matrix)
    return values[..., 0]


def unit_pairs(distance: Tensor, generator: torch.Generator, dimension: int = DIMENSION) -> tuple[Tensor, Tensor]:
    """Random unit vectors a and b with ‖a − b‖ as given: ``[...]`` to two of ``[..., dimension]``, in float64."""
    raw = torch.randn(*distance.shape, dimension, 2, generator=generator, dtype=torch.float64)
    middle, across = torch.linalg.qr(raw)[0].unbind(-1)
    sine = (distance / 2).unsqueeze(-1)
    cosine = (1 - sine.square()).sqrt()
    return cosine * middle + sine * across, cosine * middle - sine * across


def least_norm(build: Callable[[], Tensor], parameters: Sequence[Tensor], steps: int) -> Tensor:
    """The matrices ``[..., D, D]`` that a descent of their norms by Adam ends at.

    The loss is the sum of log (Σ s⁸)^(1/8). ``build`` makes the matrices of ``parameters``, whatever these are, so
    that every constraint is kept.
    """
    optimizer = torch.optim.Adam(list(parameters), lr=_LEARNING_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        matrix = build()
        matrix = matrix / torch.linalg.matrix_norm(matrix.detach(), keepdim=True)
        # Powers of WᵀW need no singular vectors, whose gradients are undefined where singular values meet.
        gram = torch.linalg.matrix_power(matrix.mT @ matrix, _SCHATTEN // 2)
        loss = gram.diagonal(dim1=-2, dim2=-1).sum(-1).log() / _SCHATTEN
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        return build()


def grid(*axes: Sequence[float], starts: int = 1) -> list[Tensor]:
    """Every combination of the axes, ``starts`` times: ``[starts, *axes]`` for each axis."""
    values = torch.meshgrid(*(torch.tensor(axis, dtype=torch.float64) for axis in axes), indexing="ij")
    return [each.expand(starts, *each.shape) for each in values]


def draw_start(batch: torch.Size, generator: torch.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Where a descent starts: N(0, 1) in each shape, for every setting of the batch."""
    return [torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def chart(
    name: str, title: str, axes: tuple[str, str], x: Sequence[float], y: Mapping[str, Tensor], caption: str, log: str
) -> Chart:
    """A chart of values by label; the axes named in ``log`` are logarithmic."""
    curves = tuple(
        Curve(label=label, x=tuple(x), y=tuple(each.tolist()), style=_STYLES.get(label.partition(", ")[0], "line"))
        for label, each in y.items()
    )
    return Chart(
        name=name, title=title, x_label=axes[0], y_label=axes[1], curves=curves, caption=caption,
        log_x="x" in log, log_y="y" in log,
    )  # fmt: skip
