from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

WithinBudget = Callable[[Tensor, Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def within_budget() -> WithinBudget:
    """``check(got, exact, eager)``: got is at most twice as far from exact as plain low precision must be.

    ``exact`` is in float64; ``eager`` is the plain computation in got's dtype. What any result in that dtype loses to
    its own rounding is added to eager's error.
    """

    def check(got: Tensor, exact: Tensor, eager: Tensor) -> None:
        assert exact.dtype == torch.float64
        assert got.dtype == eager.dtype
        assert got.shape == exact.shape
        rounding = torch.finfo(got.dtype).eps * exact.abs().max()
        error = (got.double() - exact).abs().max()
        budget = 2 * ((eager.double() - exact).abs().max() + rounding)
        assert error <= budget, f"error {error:.3g} exceeds the budget {budget:.3g}"

    return check
