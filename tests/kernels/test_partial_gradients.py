"""The projection's gradients one at a time, and added to what is there: as the operator around a stock kernel asks."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from exsel.kernels import cpp, passes
from exsel.kernels.exclude import HAS_TRITON

LANGUAGES = [passes, cpp]
if HAS_TRITON:
    from exsel.kernels import triton_passes

    LANGUAGES.append(triton_passes)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """But for the rounding of either to its dtype, and of what it is a sum of."""
    tolerance = 4 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.__name__.rpartition(".")[2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 33, 64])
@pytest.mark.parametrize("size", [1.0, 1e-30], ids=["ordinary", "small"])
def test_each_alone_is_each_of_both(
    language: ModuleType, dtype: torch.dtype, head_dim: int, size: float, device: torch.device
) -> None:
    if language is cpp and not cpp.available():
        pytest.skip(cpp.why_not())
    where = device if language.__name__.endswith("triton_passes") else torch.device("cpu")

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=where)

    dz, v = random(2, 4, 7, head_dim), random(2, 2, 7, head_dim) * size
    z, along = torch.empty_like(dz), torch.empty(2, 4, 7, device=where)
    language.project(random(2, 4, 7, head_dim), v, None, 1e-12, z, along)
    dy, dv, dy_alone, dv_alone = (torch.empty_like(x) for x in (dz, v, dz, v))
    language.project_backward(dz, z, v, None, 1e-12, along, dy, dv)
    language.project_backward(dz, z, v, None, 1e-12, along, dy_alone, None)
    language.project_backward(dz, z, v, None, 1e-12, along, None, dv_alone)
    assert_same(dy_alone, dy)
    assert_same(dv_alone, dv)
    before = random(2, 2, 7, head_dim) * dv.float().abs().max().to(dtype)
    total = before.clone()
    language.project_backward(dz, z, v, None, 1e-12, along, None, total, accumulate=True)
    assert_same(total, before + dv)
