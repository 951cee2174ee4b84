"""The operators under torch.compile, torch.func and autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import exsel
from exsel.dispatch import Backend
from exsel.kernels import cpp


@pytest.fixture(autouse=True)
def _compile_afresh() -> None:
    torch.compiler.reset()


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(*shape, requires_grad=True) for shape in shapes]


def exclusive_and_selective(q: Tensor, k: Tensor, v: Tensor, tau_q: Tensor, tau_v: Tensor, strength: Tensor) -> Tensor:
    return exsel.attention(
        q,
        k,
        v,
        is_causal=True,
        enable_gqa=True,
        exclusive=True,
        strength=strength,
        query_scale=tau_q,
        value_scale=tau_v,
    )


ATTENTION_SHAPES = ((2, 4, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8), (2, 4, 7), (2, 2, 7), (4,))


@pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=[pytest.mark.slow, pytest.mark.skipif(not cpp.available(), reason=cpp.why_not())]
        ),
    ],
)
def test_compiled_attention_equals_eager(compiler: str) -> None:
    inputs = leaves(*ATTENTION_SHAPES)
    compiled = torch.compile(exclusive_and_selective, fullgraph=True, backend=compiler)
    dz = torch.randn(2, 4, 7, 8)
    got, expected = compiled(*inputs), exclusive_and_selective(*inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, inputs, dz), torch.autograd.grad(expected, inputs, dz))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("strength", [None, 0.5, torch.tensor([0.1, 0.2, 0.3, 0.4])], ids=["one", "half", "by head"])
def test_compiled_exclude_equals_eager(backend: Backend, strength: float | Tensor | None, dtype: torch.dtype) -> None:
    """By dtype: torch 2.11 loses the gradient of a function whose result is an intermediate, as .to() may make it."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in leaves((2, 4, 7, 8), (2, 2, 7, 8))]

    def run(y: Tensor, v: Tensor) -> Tensor:
        return exsel.exclude(y, v, strength=strength, backend=backend)

    got, expected = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), run(*inputs)
    dz = torch.randn_like(expected)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, inputs, dz), torch.autograd.grad(expected, inputs, dz))


def test_compiled_once_for_all_lengths() -> None:
    compiled = torch.compile(exsel.exclude, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 5, 130):
        y, v = torch.randn(2, 4, tokens, 8), torch.randn(2, 2, tokens, 8)
        torch.testing.assert_close(compiled(y, v), exsel.exclude(y, v))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
class TestFunctionTransforms:
    def test_vmap(self, backend: Backend) -> None:
        y, v, strength = torch.randn(3, 2, 4, 7, 8), torch.randn(3, 2, 2, 7, 8), torch.rand(3, 4)

        def run(y: Tensor, v: Tensor, strength: Tensor) -> Tensor:
            return exsel.exclude(y, v, strength=strength, backend=backend)

        expected = torch.stack([run(*row) for row in zip(y, v, strength, strict=True)])
        torch.testing.assert_close(torch.func.vmap(run)(y, v, strength), expected)

    def test_vmap_over_one_argument(self, backend: Backend) -> None:
        y, v = torch.randn(3, 2, 4, 7, 8), torch.randn(2, 2, 7, 8)
        got = torch.func.vmap(lambda y: exsel.exclude(y, v, backend=backend))(y)
        torch.testing.assert_close(got, torch.stack([exsel.exclude(row, v, backend=backend) for row in y]))

    def test_grad(self, backend: Backend) -> None:
        y, v = leaves((2, 4, 7, 8), (2, 2, 7, 8))

        def loss(y: Tensor, v: Tensor) -> Tensor:
            return exsel.exclude(y, v, backend=backend).sin().sum()

        expected = torch.autograd.grad(loss(y, v), (y, v))
        got = torch.func.grad(loss, argnums=(0, 1))(y.detach(), v.detach())
        torch.testing.assert_close(got, expected)

    def test_grad_by_sample(self, backend: Backend) -> None:
        y, v = torch.randn(3, 4, 7, 8), torch.randn(3, 2, 7, 8)

        def loss(y: Tensor, v: Tensor) -> Tensor:
            return exsel.exclude(y, v, backend=backend).sin().sum()

        expected = torch.func.grad(lambda y, v: sum(loss(a, b) for a, b in zip(y, v, strict=True)), (0, 1))(y, v)
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss, (0, 1)))(y, v), expected)

    def test_hessian_vector_product(self, backend: Backend) -> None:
        y, v, direction = (torch.randn(1, 2, 3, 4, dtype=torch.float64) for _ in range(3))

        def gradient(v: Tensor, backend: Backend) -> Tensor:
            return torch.func.grad(lambda v: exsel.exclude(y, v, backend=backend).sin().sum())(v)

        _, pullback = torch.func.vjp(lambda v: gradient(v, backend), v)
        _, expected = torch.func.vjp(lambda v: gradient(v, "reference"), v)
        torch.testing.assert_close(pullback(direction), expected(direction))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own import
def test_forward_mode_is_refused_or_right() -> None:
    y, v, direction = (torch.randn(1, 2, 3, 4) for _ in range(3))
    _, expected = torch.func.jvp(lambda y: exsel.exclude(y, v, backend="reference"), (y,), (direction,))
    try:
        _, got = torch.func.jvp(lambda y: exsel.exclude(y, v), (y,), (direction,))
    except (RuntimeError, NotImplementedError) as error:
        assert "jvp" in str(error) or "forward" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(backend: Backend, dtype: torch.dtype) -> None:
    """Autocast lowers the products; the projection accumulates in float32 all the same, so z ⟂ v holds."""
    q, k, v = (torch.randn(2, 4, 33, 32, dtype=dtype, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        z = exsel.attention(q, k, v, is_causal=True, exclusive=True, backend=backend)
    exact = exsel.attention(q.double(), k.double(), v.double(), is_causal=True, exclusive=True, backend="reference")
    assert (z.double() - exact).norm() < 0.02 * exact.norm()
    gradients = torch.autograd.grad(z.float().square().sum(), (q, k, v))
    expected = torch.autograd.grad(exact.square().sum(), (q, k, v))
    for got, true in zip(gradients, expected, strict=True):
        assert got.dtype == dtype
        assert (got.double() - true.double()).norm() < 0.03 * true.double().norm()


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_autocast_does_not_lower_the_projection(backend: Backend) -> None:
    y = torch.randn(2, 4, 33, 64)
    with torch.autocast("cpu", torch.bfloat16):
        z = exsel.exclude(y, y, backend=backend)
    assert z.dtype == torch.float32
    assert (z.norm(dim=-1) < 1e-6 * y.norm(dim=-1)).all()
