"""τ ⊙ x and its gradients against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from budget import assert_within_budget
from exsel import reference
from exsel.config import PositionForm
from exsel.kernels import cpp
from exsel.kernels.operators import is_unseen
from exsel.kernels.scale import scale_directly, scale_heads


def plain(x: Tensor, tau: Tensor) -> Tensor:
    return (x * tau.unsqueeze(-1)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [1, 8, 33, 64, 128])
@pytest.mark.parametrize("tokens", [1, 7, 130])
@pytest.mark.parametrize("layout", ["heads first", "tokens first", "strided"])
def test_against_float64(dtype: torch.dtype, head_dim: int, tokens: int, layout: str) -> None:
    x = torch.randn(8, 3, tokens, head_dim, dtype=dtype)
    if layout == "tokens first":
        x = torch.randn(8, tokens, 3, head_dim, dtype=dtype).transpose(1, 2)
    elif layout == "strided":
        x = torch.randn(8, 3, tokens, 2 * head_dim, dtype=dtype)[..., ::2]
    x.requires_grad_()
    tau = (1 + torch.rand(8, 1, tokens)).expand(8, 3, tokens).requires_grad_()
    dout = torch.randn(8, 3, tokens, head_dim, dtype=dtype)
    got, eager = scale_heads(x, tau), plain(x, tau)
    x64, tau64 = x.detach().double().requires_grad_(), tau.detach().double().requires_grad_()
    exact = plain(x64, tau64)
    assert_within_budget([got], [exact], [eager])
    assert_within_budget(
        torch.autograd.grad(got, (x, tau), dout),
        torch.autograd.grad(exact, (x64, tau64), dout.double()),
        torch.autograd.grad(eager, (x, tau), dout),
    )


def test_second_derivative_and_transforms() -> None:
    x, tau = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.rand(2, 3, 5, dtype=torch.float64)
    inputs = (x.requires_grad_(), tau.requires_grad_())
    assert torch.autograd.gradcheck(scale_heads, inputs)
    assert torch.autograd.gradgradcheck(scale_heads, inputs)
    many = torch.randn(4, 2, 3, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(scale_heads, (0, None))(many, tau), plain(many, tau))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_batch_dimensions(lead: tuple[int, ...]) -> None:
    x, tau = torch.randn(*lead, 3, 5, 4), torch.rand(*lead, 3, 5)
    torch.testing.assert_close(scale_heads(x, tau), plain(x, tau), rtol=0, atol=0)


@pytest.mark.skipif(not cpp.available(), reason=cpp.why_not())
def test_passes_opcheck() -> None:
    x, tau = torch.randn(2, 3, 5, 4), torch.rand(2, 3, 5)
    torch.library.opcheck(torch.ops.exsel.scale_heads.default, (x, tau))
    torch.library.opcheck(torch.ops.exsel.scale_heads_backward.default, (torch.randn(2, 3, 5, 4), x, tau))


@pytest.mark.skipif(not cpp.available(), reason=cpp.why_not())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "size"), [(64, 64), (33, 33), (8, 5)])
@pytest.mark.parametrize("form", ["per head", "double_exponential", "shared", "without position"])
def test_temperature_against_float64(dtype: torch.dtype, head_dim: int, size: int, form: str) -> None:
    few, wide = 1 if form == "shared" else 6, reference.accumulation_dtype(dtype)
    packed = 3 * torch.randn(2, 5, 3 * 6 * max(head_dim, size))
    x = packed[..., : 6 * head_dim].unflatten(-1, (6, head_dim)).to(dtype).transpose(1, 2)
    features = packed[..., -6 * size :].to(dtype).unflatten(-1, (6, size))
    weight, logit = torch.randn(few, size, dtype=wide), torch.randn(few, dtype=wide)
    position, some_logit = torch.arange(1, 6).unsqueeze(0), None if form == "without position" else logit
    law: PositionForm = "double_exponential" if form == "double_exponential" else "sigmoid"
    with torch.no_grad():
        got = scale_directly(x, features, weight, position, some_logit, law)
        assert got is not None

        def expected(kind: torch.dtype) -> Tensor:
            given = (features.transpose(1, 2).to(kind), weight.to(kind))
            term = () if some_logit is None else (position, some_logit.to(kind))
            tau = reference.inverse_temperature(*given, *(term or (None, None)), law)
            return (x.to(kind) * tau.unsqueeze(-1)).to(kind)

        exact = expected(torch.float64)
        if dtype == torch.float64:  # the reference's own sums round as these do: one rounding a feature
            torch.testing.assert_close(got, exact, rtol=0, atol=2 * size * 2.0**-53 * exact.abs().max().item())
        else:
            assert_within_budget([got], [exact], [expected(wide).to(dtype)])


@pytest.mark.skipif(not cpp.available(), reason=cpp.why_not())
def test_temperature_refuses_what_it_must_not_read() -> None:
    x, weight = torch.randn(1, 4, 1, 8), torch.randn(4, 8)
    features, position = x.transpose(1, 2), torch.ones(1, 1, dtype=torch.int64)
    with torch.no_grad():
        assert scale_directly(x, features, weight, None, None) is not None
        assert scale_directly(x, features, weight[:3], None, None) is None
        assert scale_directly(x, features.transpose(1, 2), weight, None, None) is None
        assert scale_directly(x.bfloat16(), features, weight, None, None) is None
        assert scale_directly(x, features, weight, position.int(), weight[:, 0]) is None
        assert scale_directly(x.to("meta"), features, weight, None, None) is None
        with cpp.without():
            assert scale_directly(x, features, weight, None, None) is None


def test_what_sees_a_computation() -> None:
    x = torch.zeros(2)
    assert not is_unseen()  # gradients may be recorded
    with torch.no_grad():
        assert is_unseen()
        assert torch.func.vmap(lambda x: x if is_unseen() else x + 1)(x).tolist() == [1, 1]
        assert torch.compile(lambda x: x if is_unseen() else x + 1, backend="eager")(x).tolist() == [1, 1]
