"""The projection's passes, in PyTorch and in C++, against the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from budget import assert_within_budget
from exsel import reference
from exsel.kernels import cpp, passes

EPS = 1e-12
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GROUPS = [(1, 1), (3, 3), (6, 2), (4, 1)]


@pytest.fixture(params=["passes", "cpp"])
def language(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "passes":
        return passes
    if not cpp.available():
        pytest.skip(cpp.why_not())
    return cpp


def contiguous(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(batch, heads, tokens, dim, dtype=dtype)


def by_token(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(batch, tokens, heads, dim, dtype=dtype).transpose(1, 2)


def fused(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> Tensor:
    """A slice of what one projection writes for queries, keys and values."""
    rows = torch.empty(batch, tokens, (heads + 2) * dim + 3, dtype=dtype)[..., dim + 3 : -dim]
    return rows.unflatten(-1, (heads, dim)).transpose(1, 2)


def strided(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Elements that do not lie side by side."""
    return torch.empty(batch, heads, dim, tokens, dtype=dtype).transpose(2, 3)


LAYOUTS: list[Callable[[int, int, int, int, torch.dtype], Tensor]] = [contiguous, by_token, fused, strided]


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(kw_only=True)
class Case:
    """Inputs, and room for outputs that holds NaN (see conftest.py)."""

    y: Tensor
    v: Tensor
    dout: Tensor
    strength: Tensor | None = None
    layout: Callable[[int, int, int, int, torch.dtype], Tensor] = contiguous

    @staticmethod
    def random(
        group: tuple[int, int],
        tokens: int,
        dim: int,
        dtype: torch.dtype,
        *,
        strength: str = "none",
        layout: Callable[[int, int, int, int, torch.dtype], Tensor] = contiguous,
    ) -> Case:
        heads, kv_heads = group
        # Enough rows that neither side of the comparison is right by luck.
        batch = max(1, 96 // (heads * tokens))
        y, dout = (layout(batch, heads, tokens, dim, dtype).normal_() for _ in range(2))
        v = layout(batch, kv_heads, tokens, dim, dtype).normal_()
        if dim == 1:
            # The reference is exact here: not to be asked for 1 / ‖v‖ times what rounding leaves.
            v += 4 * v.sign()
        per_token = torch.rand(batch, tokens, heads, dtype=accumulation(dtype)).transpose(1, 2) * 1.5
        per_head = torch.rand(heads, 1, dtype=accumulation(dtype)).expand(batch, heads, tokens)
        return Case(
            y=y,
            v=v,
            dout=dout,
            strength={"none": None, "head": per_head, "token": per_token}[strength],
            layout=layout,
        )

    @property
    def scalars(self) -> Tensor:
        """Fresh room for one number a head and token."""
        return torch.empty(self.y.shape[:-1], dtype=accumulation(self.y.dtype))

    def fresh(self, like: Tensor) -> Tensor:
        batch, heads, tokens, dim = like.shape
        return self.layout(batch, heads, tokens, dim, like.dtype)

    def run(self, language: ModuleType, *, from_output: bool) -> list[Tensor]:
        """out, along, dy, dv, and the gradient of the strength where one is given."""
        out, along, dy, dv = self.fresh(self.y), self.scalars, self.fresh(self.y), self.fresh(self.v)
        dstrength = None if self.strength is None else self.scalars
        language.project(self.y, self.v, self.strength, EPS, out, along)
        x, saved = (out, along) if from_output else (self.y, None)
        language.project_backward(self.dout, x, self.v, self.strength, EPS, saved, dy, dv, dstrength)
        return [x for x in (out, along, dy, dv, dstrength) if x is not None]

    def plain(self, dtype: torch.dtype) -> list[Tensor]:
        """What run() should give, by autograd through the reference, computed in ``dtype``."""
        y, v = (x.to(dtype, copy=True).requires_grad_() for x in (self.y, self.v))
        strength = None
        if self.strength is not None:
            strength = self.strength.to(accumulation(dtype), copy=True).requires_grad_()
        wide_y, wide_v = y.to(accumulation(dtype)), v.to(accumulation(dtype))
        unit = wide_v / torch.linalg.vector_norm(wide_v, dim=-1, keepdim=True).clamp_min(EPS)
        along = (wide_y * unit.repeat_interleave(y.shape[1] // v.shape[1], dim=1)).sum(-1)
        z = reference.exclude(wide_y, wide_v, strength, EPS)
        out = z.to(dtype)
        leaves = [x for x in (y, v, strength) if x is not None]
        return [out.detach(), along.detach(), *torch.autograd.grad(out, leaves, self.dout.to(dtype))]

    def check(self, language: ModuleType, *, from_output: bool) -> None:
        got, exact = self.run(language, from_output=from_output), self.plain(torch.float64)
        if self.y.dtype == torch.float64:
            torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
        else:
            assert_within_budget(got, exact, self.plain(self.y.dtype))


class TestAgainstReference:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("dim", [1, 8, 33, 64, 128])
    @pytest.mark.parametrize("from_output", [False, True], ids=["from y", "from z"])
    def test_shapes(self, language: ModuleType, dtype: torch.dtype, dim: int, from_output: bool) -> None:
        for group in GROUPS:
            for tokens in (1, 2, 7, 33, 130):
                strength = "token" if tokens in (2, 33) else "none"
                case = Case.random(group, tokens, dim, dtype, strength=strength)
                case.check(language, from_output=from_output)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("strength", ["none", "head", "token"])
    def test_options(self, language: ModuleType, dtype: torch.dtype, strength: str) -> None:
        for dim in (33, 64):
            case = Case.random((6, 2), 7, dim, dtype, strength=strength)
            for from_output in (False, True):
                case.check(language, from_output=from_output)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dim", [33, 64])
    def test_layouts(
        self,
        language: ModuleType,
        layout: Callable[[int, int, int, int, torch.dtype], Tensor],
        dtype: torch.dtype,
        dim: int,
    ) -> None:
        for group in GROUPS:
            case = Case.random(group, 7, dim, dtype, strength="token", layout=layout)
            case.check(language, from_output=False)
            case.check(language, from_output=True)

    def test_without_along(self, language: ModuleType) -> None:
        case = Case.random((6, 2), 7, 64, torch.float32)
        out = torch.empty_like(case.y)
        language.project(case.y, case.v, None, EPS, out)
        assert torch.equal(out, case.run(language, from_output=False)[0])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("dim", [33, 64])
    @pytest.mark.parametrize("size", [1.0, 0.0])
    def test_in_place(self, language: ModuleType, dtype: torch.dtype, dim: int, size: float) -> None:
        case = Case.random((6, 2), 7, dim, dtype, strength="token")
        case.v *= size
        expected = case.run(language, from_output=False)
        dy, dv = case.dout.clone(), torch.empty_like(case.v)
        language.project_backward(dy, case.y, case.v, case.strength, EPS, None, dy, dv, case.scalars)
        language.project(case.y, case.v, case.strength, EPS, case.y)
        for got, wanted in zip((case.y, dy, dv), (expected[0], *expected[2:4]), strict=True):
            assert torch.equal(got, wanted)


class TestRange:
    @pytest.mark.parametrize("y_size", [1e-30, 1.0, 1e30])
    @pytest.mark.parametrize("v_size", [0.0, 1e-45, 1e-40, 1e-30, 1e-12, 1e-7, 1e-5, 1e10, 1e20, 1e38])
    @pytest.mark.parametrize("strength", ["none", "token"])
    def test_float32(self, language: ModuleType, y_size: float, v_size: float, strength: str) -> None:
        case = Case.random((4, 2), 9, 16, torch.float32, strength=strength)
        case.y *= y_size
        case.v.uniform_(-1, 1).mul_(v_size)
        exact = case.plain(torch.float64)
        for from_output in (False, True):
            got = case.run(language, from_output=from_output)
            for ours, true in zip(got, exact, strict=True):
                largest = true.abs().max().item()
                if largest > torch.finfo(torch.float32).max:  # a gradient of 1e30 / 1e-12
                    continue
                assert torch.isfinite(ours).all()
                # Numbers near the smallest normal one are not asked for their digits.
                torch.testing.assert_close(ours.double(), true, rtol=1e-3, atol=1e-5 * largest + 1e-34)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("pattern", ["ones", "one entry", "signs"])
    @pytest.mark.parametrize("dim", [16, 64])
    def test_largest(self, language: ModuleType, dtype: torch.dtype, pattern: str, dim: int) -> None:
        largest = torch.finfo(dtype).max
        v = torch.full((1, 1, 2, dim), largest, dtype=dtype)
        if pattern == "one entry":
            v[..., 1:] = 0
        elif pattern == "signs":
            v[..., ::2] *= -1
        case = Case(y=v.clone(), v=v, dout=torch.randn_like(v))
        for from_output in (False, True):
            out, along, dy, dv = case.run(language, from_output=from_output)
            assert (out.double().abs() < 1e-6 * largest).all(), "y = v leaves nothing"
            assert all(torch.isfinite(x).all() for x in (along, dy, dv))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_zero_value(self, language: ModuleType, dtype: torch.dtype) -> None:
        for dim in (8, 64):
            case = Case.random((4, 2), 3, dim, dtype, strength="token")
            case.v.zero_()
            for from_output in (False, True):
                out, along, dy, dv, dstrength = case.run(language, from_output=from_output)
                assert torch.equal(out, case.y)
                assert torch.equal(dy, case.dout)
                assert not any(x.any() for x in (along, dv, dstrength))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("eps", [0.5, 100.0])
    def test_large_eps(
        self, language: ModuleType, dtype: torch.dtype, eps: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Some norms, and all, below eps: their derivative is absent and the projection is none."""
        monkeypatch.setattr(f"{__name__}.EPS", eps)
        for dim in (2, 64):
            case = Case.random((6, 2), 33, dim, dtype, strength="token")
            if dim == 64:
                case.v /= 16
            case.check(language, from_output=False)
            case.check(language, from_output=True)

    def test_not_a_number(self, language: ModuleType) -> None:
        """Stays in its own row."""
        case = Case.random((1, 1), 5, 64, torch.float32)
        expected = case.run(language, from_output=False)[0]
        case.y[..., 1, 3] = math.nan
        case.v[..., 3, 5] = math.nan
        got = case.run(language, from_output=False)[0]
        assert got[..., [1, 3], :].isnan().all()
        assert torch.equal(got[..., [0, 2, 4], :], expected[..., [0, 2, 4], :])

    @pytest.mark.parametrize("across", [1.0, 1e-2, 1e-3])
    def test_nothing_of_the_direction_is_left(self, language: ModuleType, across: float) -> None:
        v = torch.randn(2, 4, 33, 64)
        other = reference.exclude(torch.randn_like(v).double(), v.double(), None, EPS)
        y = (30 * v.double() + across * other).float()
        z = torch.empty_like(y)
        language.project(y, v, None, EPS, z)
        cosine = torch.nn.functional.cosine_similarity(z.double(), v.double(), dim=-1)
        assert (cosine.abs() < 1e-6).all()


class TestFormulas:
    """What autograd differentiates a second time."""

    def leaves(self) -> list[Tensor]:
        shapes = ((1, 4, 2, 3), (1, 2, 2, 3), (1, 4, 2))
        return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    @pytest.mark.parametrize("eps", [1e-12, 1e3])
    def test_derivatives(self, eps: float) -> None:
        leaves = self.leaves()
        dout = torch.randn_like(leaves[0]).requires_grad_()

        def forward(y: Tensor, v: Tensor, strength: Tensor) -> Tensor:
            return passes.forward_formula(y, v, strength, eps)

        def backward(*inputs: Tensor) -> tuple[Tensor | None, ...]:
            dout, y, v, strength = inputs
            return passes.backward_formula(dout, y, v, strength, eps)

        torch.testing.assert_close(
            torch.autograd.grad(forward(*leaves), leaves, dout.detach()), backward(dout, *leaves)
        )
        assert torch.autograd.gradcheck(backward, (dout, *leaves))

    def test_vmap(self) -> None:
        y, v, strength = (torch.stack([x.detach(), x.detach() + 1]) for x in self.leaves())
        dout = torch.randn_like(y)

        def both(dout: Tensor, y: Tensor, v: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
            gradients = passes.backward_formula(dout, y, v, strength, EPS)
            return (passes.forward_formula(y, v, strength, EPS), *(x for x in gradients if x is not None))

        got = torch.func.vmap(both)(dout, y, v, strength)
        each = [both(*row) for row in zip(dout, y, v, strength, strict=True)]
        torch.testing.assert_close(got, tuple(torch.stack(x) for x in zip(*each, strict=True)))


NEEDS_COMPILER = pytest.mark.skipif(not cpp.available(), reason=cpp.why_not() or "there is a compiler")


def every_float() -> Tensor:
    """float32 numbers of every exponent, among them those that lie halfway between two half-precision ones."""
    signs_and_exponents = torch.arange(512, dtype=torch.int64).unsqueeze(-1) << 23
    mantissas = torch.cat([torch.randint(1 << 23, (40,)), torch.arange(8) << 12, torch.arange(8) << 15])
    bits = torch.cat([signs_and_exponents + mantissas, signs_and_exponents + (1 << 23) - 1 - mantissas])
    return bits.flatten().to(torch.int32).view(torch.float32)


@NEEDS_COMPILER
class TestCpp:
    def test_same_on_every_number_of_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpp, "_BYTES_PER_THREAD", 1)
        case = Case.random((6, 2), 33, 64, torch.float32, strength="token")
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(case.run(cpp, from_output=False))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_conversions(self, dtype: torch.dtype) -> None:
        check_conversions(dtype)

    def test_compiled_for_any_processor(self, monkeypatch: pytest.MonkeyPatch, fresh_build: Path) -> None:
        """Without this processor's instructions, and on one thread."""
        monkeypatch.setattr(cpp, "_FLAGS", cpp._FLAGS[-1:])
        assert cpp.available(), cpp.why_not()
        check_conversions(torch.bfloat16)
        check_conversions(torch.float16)
        for dtype in DTYPES:
            Case.random((6, 2), 33, 64, dtype, strength="token").check(cpp, from_output=False)


def check_conversions(dtype: torch.dtype) -> None:
    """To half precision and from it as PyTorch converts."""
    every = torch.arange(1 << 16).to(torch.int16).view(dtype)
    for dim in (1, 64):
        y = every[every.isfinite()].view(1, 1, -1, dim)
        out = torch.empty_like(y)
        cpp.project(y, torch.zeros_like(y), None, EPS, out)
        assert torch.equal(out.view(torch.int16), y.view(torch.int16))
    tau = every_float().view(1, 1, -1)
    ones = torch.ones(1, 1, tau.shape[-1], 1, dtype=dtype)
    out = torch.empty_like(ones)
    cpp.scale(ones, tau, out)
    torch.testing.assert_close(out.flatten(), tau.flatten().to(dtype), rtol=0, atol=0, equal_nan=True)
