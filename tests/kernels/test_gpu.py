"""What only a GPU can show: the stock CUDA kernels under our operator, and CUDA graphs. Run with -m gpu."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import exsel
from budget import assert_within_budget
from exsel import reference
from exsel.dispatch import Backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _free_choice() -> None:
    """Some stock backward kernels have no deterministic form."""
    torch.use_deterministic_algorithms(False)


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda").requires_grad_()


def attend(q: Tensor, k: Tensor, v: Tensor, strength: Tensor | None, backend: Backend) -> Tensor:
    return exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, strength=strength, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION,
                                    SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])  # fmt: skip
@pytest.mark.parametrize("tokens", [7, 130, 1024])
@pytest.mark.parametrize("with_strength", [False, True])
def test_every_stock_kernel(dtype: torch.dtype, kernel: SDPBackend, tokens: int, with_strength: bool) -> None:
    q, k, v = (leaf(2, 4, tokens, 64, dtype=dtype) for _ in range(3))
    inputs = [q, k, v]
    strength = torch.rand(4, device="cuda").requires_grad_() if with_strength else None
    inputs += [] if strength is None else [strength]
    dz = torch.randn_like(q)
    with sdpa_kernel(kernel):
        got = attend(q, k, v, strength, "sdpa")
        gradients = torch.autograd.grad(got, inputs, dz)
        alpha = None if strength is None else strength[None, :, None].expand(2, 4, tokens)
        plain = reference.exclude(F.scaled_dot_product_attention(q, k, v, is_causal=True), v, alpha, 1e-12)
        plain_gradients = torch.autograd.grad(plain, inputs, dz)
    inputs64 = [x.detach().double().requires_grad_() for x in inputs]
    exact = attend(*inputs64[:3], inputs64[3] if with_strength else None, "reference")
    assert_within_budget([got], [exact], [plain])
    assert_within_budget(gradients, torch.autograd.grad(exact, inputs64, dz.double()), plain_gradients)


def test_cuda_graph() -> None:
    q, k, v = (leaf(2, 4, 256, 64, dtype=torch.bfloat16) for _ in range(3))
    dz = torch.randn_like(q)

    def step() -> tuple[Tensor, ...]:
        z = attend(q, k, v, None, "sdpa")
        return z, *torch.autograd.grad(z, (q, k, v), dz)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for got, once in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, once)


def test_compiled_by_inductor() -> None:
    torch.compiler.reset()
    q, k, v = (leaf(2, 4, 256, 64, dtype=torch.bfloat16) for _ in range(3))
    dz = torch.randn_like(q)
    got = torch.compile(attend, fullgraph=True)(q, k, v, None, "sdpa")
    expected = attend(q, k, v, None, "sdpa")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, (q, k, v), dz), torch.autograd.grad(expected, (q, k, v), dz), rtol=0.02, atol=0.02
    )
