"""How far from the float64 result a fast path may be, and one order of sums from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def assert_greedy(model: Any, sequences: Tensor, start: int, **inputs: Tensor) -> None:
    """Each token from ``start`` on is the likeliest after those before it, in one pass over all of them.

    Matrix products of one token and of many are not the same bits on every processor. Where two tokens are equally
    likely but for that rounding, either may be chosen.
    """
    with torch.no_grad():
        logits = model(input_ids=sequences, use_cache=False, **inputs).logits[:, start - 1 : -1]
    chosen = logits.gather(-1, sequences[:, start:].unsqueeze(-1)).squeeze(-1)
    worst = (logits.amax(-1) - chosen).max() / logits.abs().max()
    assert worst <= 16 * torch.finfo(logits.dtype).eps, f"{worst:.1e}"
