"""Lower bounds on the operator norm of W: checked on any matrices, and on the least norm that a descent finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from evidence.papers.experiment import Estimate, Finding

DIMENSION = 4
LEARNING_RATE = 0.05
# The norm that is descended, smooth where the operator norm is not; it is never less than it.
_SCHATTEN = 8


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried: random matrices, starts of a descent and its steps."""

    trials: int
    starts: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a lower bound fared.

    Args:
        trials: matrices that it was held against.
        violations: of them, those of a smaller norm.
        largest_ratio: of the bound to a norm: 1 where it is reached.
    """

    trials: int
    violations: int
    largest_ratio: float

    @classmethod
    def of(cls, bound: Tensor, norm: Tensor, rounding: Tensor | float) -> Self:
        """Of norms that the bound should not exceed.

        Args:
            bound, norm: alike in shape.
            rounding: what computing either may be wrong by, relative to the norm.
        """
        ratio = bound / norm
        return cls(
            trials=ratio.numel(),
            # Also where there is no number to compare.
            violations=int((~(ratio <= 1 + rounding)).sum()),
            largest_ratio=float(ratio.max()),
        )


def findings(name: str, checks: Sequence[Check]) -> tuple[Finding, ...]:
    """What the checks of each seed say.

    Args:
        name: what was tried.
        checks: one a seed.
    """
    violations = Estimate.of(*(check.violations for check in checks))
    return (
        Finding(
            quantity=f"violations, {name}",
            ours=violations,
            expected="none",
            holds=not any(violations.values),
            digits=0,
        ),
        Finding(quantity=f"trials, {name}", ours=Estimate.of(*(check.trials for check in checks)), digits=0),
        Finding(
            quantity=f"largest bound / ‖W‖, {name}",
            ours=Estimate.of(*(check.largest_ratio for check in checks)),
            expected="at most 1",
            holds=all(check.violations == 0 for check in checks),
            digits=6,
        ),
    )


def operator_norm(matrix: Tensor) -> Tensor:
    """‖W‖, the largest singular value: ``[..., D, D]`` to ``[...]``."""
    values: Tensor = torch.linalg.svdvals(matrix)
    return values[..., 0]


def unit_pairs(distance: Tensor, generator: torch.Generator, dimension: int = DIMENSION) -> tuple[Tensor, Tensor]:
    """Random unit vectors a and b with ‖a − b‖ as given: ``[...]`` to two of ``[..., dimension]``, in float64."""
    raw = torch.randn(*distance.shape, dimension, 2, generator=generator, dtype=torch.float64)
    frame = torch.linalg.qr(raw)[0]
    middle, across = frame.unbind(-1)
    sine = (distance / 2).unsqueeze(-1)
    cosine = (1 - sine.square()).sqrt()
    return cosine * middle + sine * across, cosine * middle - sine * across


def least_norm(build: Callable[[], Tensor], parameters: Sequence[Tensor], steps: int) -> Tensor:
    """The matrices that a descent of their norms ends at, ``[..., D, D]``.

    Each norm is descended on its own: the logarithms of the Schatten norms (Σ s⁸)^(1/8) are added up, and Adam treats
    every number by itself.

    Args:
        build: makes the matrices, which keep every constraint whatever the parameters are.
        parameters: its leaves.
        steps: of Adam, with the learning rate going to 0.
    """
    optimizer = torch.optim.Adam(list(parameters), lr=LEARNING_RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        matrix = build()
        # Powers of WᵀW need no singular vectors, whose gradients are undefined where singular values meet.
        scale = torch.linalg.matrix_norm(matrix.detach(), keepdim=True)
        gram = torch.linalg.matrix_power((matrix / scale).mT @ (matrix / scale), _SCHATTEN // 2)
        loss = gram.diagonal(dim1=-2, dim2=-1).sum(-1).log() / _SCHATTEN
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        return build()
