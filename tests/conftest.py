from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

WithinBudget = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def within_budget() -> WithinBudget:
    """``check(got, exact, eager)``: no tensor of got is more than twice as far from exact as low precision must be.

    ``exact`` is in float64; ``eager`` is the plain computation in got's dtype. To eager's error comes what rounding to
    that dtype loses on numbers as large as the largest tensor, or as 1, the size of the tests' inputs: a result of 0
    is a difference of such numbers, which eager may hit by luck. Errors are root mean squares.
    """

    def size(x: Tensor) -> Tensor:
        return x.double().square().mean().sqrt()

    def check(got: Sequence[Tensor], exact: Sequence[Tensor], eager: Sequence[Tensor]) -> None:
        scale = torch.stack([size(x) for x in exact]).max().clamp_min(1.0)
        for index, (ours, true, plain) in enumerate(zip(got, exact, eager, strict=True)):
            assert true.dtype == torch.float64
            assert ours.dtype == plain.dtype
            assert ours.shape == true.shape
            error = size(ours - true)
            budget = 2 * (size(plain - true) + torch.finfo(ours.dtype).eps / 2 * scale)
            assert error <= budget, f"tensor {index}: error {error:.3g} exceeds the budget {budget:.3g}"

    return check
