"""How far from the float64 result a fast path may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def root_mean_square(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()


def assert_within_budget(got: Sequence[Tensor], exact: Sequence[Tensor], eager: Sequence[Tensor]) -> None:
    """No tensor of got is more than twice as far from exact as low precision must be.

    ``exact`` is in float64; ``eager`` is the plain computation in got's dtype. To eager's error comes what rounding to
    that dtype loses on numbers as large as the largest tensor, or as 1, the size of the tests' inputs: a result of 0
    is a difference of such numbers, which eager may hit by luck.
    """
    scale = torch.stack([root_mean_square(x) for x in exact]).max().clamp_min(1.0)
    for index, (ours, true, plain) in enumerate(zip(got, exact, eager, strict=True)):
        assert true.dtype == torch.float64
        assert ours.dtype == plain.dtype
        assert ours.shape == true.shape
        error = root_mean_square(ours - true)
        rounding = torch.finfo(ours.dtype).eps / 2 * scale
        budget = 2 * (root_mean_square(plain - true) + rounding)
        assert error <= budget, f"tensor {index}: error {error:.3g} exceeds the budget {budget:.3g}"
