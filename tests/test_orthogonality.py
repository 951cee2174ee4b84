"""Nothing of the own value's direction is left in an exclusive output, whatever the sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import exsel
from exsel import reference
from exsel.dispatch import Backend


class TestOrthogonality:
    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    @pytest.mark.parametrize("head_dim", [8, 64, 256])
    @pytest.mark.parametrize("across", [1.0, 1e-1, 2e-2, 2e-3, 1.01e-3])
    @pytest.mark.parametrize("along", [1.0, 30.0, 1e4])
    def test_however_little_is_left(self, backend: Backend, head_dim: int, across: float, along: float) -> None:
        """z of ``across`` · ‖v‖ where y is ``along`` · ‖v‖ along v: what rounding leaves of y must not show in z."""
        v = torch.randn(2, 4, 130, head_dim)
        other = torch.linalg.vector_norm(v, dim=-1, keepdim=True) * F.normalize(
            reference.exclude(torch.randn_like(v).double(), v.double(), None, 1e-12), dim=-1
        )
        y = (along * v.double() + across * other).float()
        z = exsel.exclude(y, v, backend=backend).double()
        counted = z.norm(dim=-1) > 1e-3 * v.double().norm(dim=-1)
        if across * 1e6 > along * math.sqrt(head_dim):  # else float32 cannot hold y that exactly
            assert counted.float().mean() > 0.9
        cosine = (z * v).sum(-1).abs() / (z.norm(dim=-1) * v.double().norm(dim=-1))
        assert (cosine[counted] < 1e-6).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_after_attention(self, backend: Backend, dtype: torch.dtype) -> None:
        q, k, v = (torch.randn(2, 6, 130, 32, dtype=dtype), torch.randn(2, 2, 130, 32, dtype=dtype),
                   torch.randn(2, 2, 130, 32, dtype=dtype))  # fmt: skip
        z = exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, backend=backend).double()
        own = v.double().repeat_interleave(3, dim=1)
        assert (z[..., 0, :].norm(dim=-1) < 1e-6 * own[..., 0, :].norm(dim=-1)).all(), "z_1 = 0"
        counted = z.norm(dim=-1) > 1e-3 * own.norm(dim=-1)
        assert counted[..., 1:].all()
        cosine = (z * own).sum(-1).abs() / (z.norm(dim=-1) * own.norm(dim=-1))
        assert cosine[counted].max() < 1e-6


class TestRange:
    """‖v‖ from nothing to the largest float: right where the answer is representable, finite always."""

    SIZES = (0.0, 1e-45, 1e-40, 1e-30, 1e-20, 1e-12, 1e-10, 1.0, 1e15, 1e20, 1e38, 3.4028234e38)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("backend", ["auto", "reference"])
    @pytest.mark.parametrize("kind", [None, 0.5])
    def test_float32(self, size: float, backend: Backend, kind: float | None) -> None:
        y = torch.randn(1, 2, 9, 16, requires_grad=True)
        v = (torch.rand(1, 2, 9, 16) * 2 - 1).mul(size).requires_grad_()
        dz = torch.randn_like(y)
        z = exsel.exclude(y, v, strength=kind, backend=backend)
        dy, dv = torch.autograd.grad(z, (y, v), dz)
        assert torch.isfinite(z).all()
        assert torch.isfinite(dy).all()
        assert torch.isfinite(dv).all()
        y64, v64 = y.detach().double().requires_grad_(), v.detach().double().requires_grad_()
        unit = v64 / torch.linalg.vector_norm(v64, dim=-1, keepdim=True).clamp_min(1e-12)
        z64 = y64 - (1.0 if kind is None else kind) * (y64 * unit).sum(-1, keepdim=True) * unit
        dy64, dv64 = torch.autograd.grad(z64, (y64, v64), dz.double())
        torch.testing.assert_close(z.double(), z64, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dy.double(), dy64, rtol=1e-4, atol=1e-5)
        largest = dv64.abs().max().item()
        # A gradient of less than the smallest normal float is not asked for its digits.
        torch.testing.assert_close(dv.double(), dv64, rtol=1e-3, atol=1e-4 * largest + 1e-37)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("pattern", ["ones", "one entry", "signs"])
    def test_largest_float(self, dtype: torch.dtype, pattern: str) -> None:
        largest = torch.finfo(dtype).max
        v = torch.full((1, 1, 2, 16), largest, dtype=dtype)
        if pattern == "one entry":
            v[..., 1:] = 0
        elif pattern == "signs":
            v[..., ::2] *= -1
        y, v = v.clone().requires_grad_(), v.requires_grad_()
        z = exsel.exclude(y, v)
        gradients = torch.autograd.grad(z, (y, v), torch.randn_like(z))
        assert (z.double().abs() < 1e-6 * largest).all(), "y = v leaves nothing"
        assert all(torch.isfinite(gradient).all() for gradient in gradients)

    @pytest.mark.parametrize("backend", ["auto", "reference"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_zero_value(self, backend: Backend, dtype: torch.dtype) -> None:
        y, v = (
            torch.randn(1, 2, 3, 8, dtype=dtype).requires_grad_(),
            torch.zeros(1, 1, 3, 8, dtype=dtype).requires_grad_(),
        )
        z = exsel.exclude(y, v, backend=backend)
        dy, dv = torch.autograd.grad(z, (y, v), torch.ones_like(z))
        assert torch.equal(z, y)
        assert torch.equal(dy, torch.ones_like(y))
        assert not dv.any()

    @pytest.mark.parametrize("backend", ["auto", "reference"])
    @pytest.mark.parametrize("size", [6e-8, 1e-5, 1.0, 300.0, 65504.0])
    def test_float16(self, backend: Backend, size: float) -> None:
        """float16 squares overflow at 256 and vanish at 2e-4; its smallest value is far above eps."""
        y, v = torch.randn(1, 2, 9, 16, dtype=torch.float16), torch.full((1, 2, 9, 16), size, dtype=torch.float16)
        z = exsel.exclude(y, v, backend=backend)
        exact_z = reference.exclude(y.double(), v.double(), None, 1e-12)
        torch.testing.assert_close(z.double(), exact_z, rtol=1e-3, atol=1e-3)
