"""Faster products of float32 matrices on a CPU are as exact as PyTorch's own, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from exsel import float32_products
from exsel.float32_products import fast_products


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("shape", [(1, 16, 16), (33, 64, 7), (512, 192, 192), (1024, 512, 128), (64, 4096, 64)])
def test_the_error_is_that_of_float32_sums(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    exact, bound = first.double() @ second.double(), first.double().abs() @ second.double().abs()
    with fast_products("cpu"):
        product = first @ second
    # Each of ``inner`` products and sums is rounded once.
    assert ((product - exact).abs() <= inner * torch.finfo(torch.float32).eps * bound).all()
    assert (product - exact).norm() < 1e-6 * exact.norm()


def test_it_holds_as_long_as_the_block_runs() -> None:
    before, state = torch.get_float32_matmul_precision(), torch.get_rng_state()
    with fast_products("cpu"):
        assert torch.get_float32_matmul_precision() == ("medium" if float32_products._is_exact() else before)
        with fast_products("cpu"):
            pass
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), fast_products("cpu"):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with fast_products("cuda"):
        assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    with fast_products("cpu"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    with fast_products("cpu"):
        torch.set_float32_matmul_precision("high")  # by a model's own code
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(float32_products, "_is_exact", lambda: False)  # a processor that would round
    with fast_products("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", _asked_too_late)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", _asked_too_late)
    with fast_products("cpu"):
        pass


def _asked_too_late(*_: str) -> str:
    raise RuntimeError("you have used mix of the legacy and new APIs to set the matmul precision")
