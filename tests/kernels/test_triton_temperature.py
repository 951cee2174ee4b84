"""The inverse temperatures and their gradients against the float64 reference, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from budget import assert_within_budget
from exsel import reference

pytest.importorskip("triton")

import triton
import triton.language as tl

from exsel.kernels.triton.temperature import inverse_temperature, inverse_temperature_backward, tanh

# No rule chooses this kernel, and the interpreter takes minutes for it.
pytestmark = pytest.mark.slow

SMALL = {"BLOCK_T": 16, "num_warps": 4}
FLOATING = [torch.float32, torch.bfloat16, torch.float16]


@dataclasses.dataclass
class Inputs:
    features: Tensor
    weight: Tensor
    position: Tensor | None
    position_logit: Tensor | None
    dtau: Tensor

    def expected(self, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
        """τ, dx, dw and da by autograd through the reference, in dtype; ``None`` for each input's own."""

        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype or x.dtype).requires_grad_()

        features, weight, logit = leaf(self.features), leaf(self.weight), leaf(self.position_logit)
        assert features is not None
        assert weight is not None
        tau = reference.inverse_temperature(features, weight, self.position, logit)
        leaves = [x for x in (features, weight, logit) if x is not None]
        return tau.detach(), *torch.autograd.grad(tau, leaves, self.dtau.to(tau.dtype))

    def run(self, config: dict[str, int] | None = SMALL) -> tuple[Tensor, ...]:
        inputs = self.features, self.weight, self.position, self.position_logit
        tau = inverse_temperature(*inputs, config=config)
        gradients = inverse_temperature_backward(self.dtau, *inputs, config=config)
        return tau, *(x for x in gradients if x is not None)

    def check(self, config: dict[str, int] | None = SMALL) -> tuple[Tensor, ...]:
        got = self.run(config)
        for ours, exact, eager in zip(got, self.expected(torch.float64), self.expected(None), strict=True):
            assert_within_budget([ours], [exact], [eager])
        return got


@pytest.fixture
def make(device: torch.device):
    def make(
        *,
        batch: int = 2,
        heads: int = 3,
        tokens: int = 7,
        dim: int = 16,
        dtype: torch.dtype = torch.float32,
        shared: bool = False,
        position: bool = True,
    ) -> Inputs:
        rows = 1 if shared else heads
        n = torch.randint(1, 5000, (batch, tokens), device=device)
        return Inputs(
            features=torch.randn(batch, heads, tokens, dim, device=device).to(dtype),
            weight=torch.randn(rows, dim, device=device) * dim**-0.5,
            position=n if position else None,
            position_logit=torch.randn(rows, device=device) - 2 if position else None,
            dtau=torch.randn(batch, heads, tokens, device=device),
        )

    return make


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "dim"),
    [(1, 1, 1, 1), (1, 2, 33, 8), (2, 3, 7, 33), (3, 1, 17, 64), (1, 2, 40, 80), (2, 2, 5, 128), (1, 1, 3, 256)],
)
def test_equals_the_reference(make, dtype: torch.dtype, batch: int, heads: int, tokens: int, dim: int) -> None:
    make(batch=batch, heads=heads, tokens=tokens, dim=dim, dtype=dtype).check()


@pytest.mark.parametrize("dim", [4, 64, 300])
def test_default_configuration(make, dim: int) -> None:
    make(tokens=20, dim=dim).check(config=None)


@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_parameters_by_head_or_for_all_heads(make, shared: bool, position: bool) -> None:
    inputs = make(shared=shared, position=position)
    inputs.check()
    if position:
        inputs.position_logit = inputs.position_logit[:1]
        inputs.check()


def test_without_the_positional_term_a_position_is_not_read(make) -> None:
    inputs = make()
    inputs.position_logit = None
    assert torch.equal(inverse_temperature(inputs.features, inputs.weight, inputs.position, None), inputs.check()[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_parameters_in_the_features_dtype(make, dtype: torch.dtype) -> None:
    inputs = make(dtype=dtype, tokens=40)
    inputs.weight, inputs.position_logit = inputs.weight.to(dtype), inputs.position_logit.to(dtype)
    inputs.check()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions_of_any_strides(make, dtype: torch.dtype) -> None:
    """One row for all sequences, and rows that are columns in memory."""
    inputs = make(tokens=9)
    inputs.position = torch.arange(1, 10, dtype=dtype, device=inputs.features.device).expand(2, 9)
    expected = inputs.check()
    inputs.position = inputs.position.t().contiguous().t()
    assert all(map(torch.equal, inputs.run(), expected))


def test_features_of_any_strides(make) -> None:
    """A view of a fused projection [B, T, 2 H D], and dτ of stride 0."""
    inputs = make(heads=2, tokens=9, dim=33)
    inputs.dtau = torch.ones(1, device=inputs.features.device).expand(2, 2, 9)
    expected = inputs.check()
    fused = torch.randn(2, 9, 2, 2, 33, device=inputs.features.device)
    fused[:, :, 1] = inputs.features.transpose(1, 2)
    inputs.features = fused[:, :, 1].transpose(1, 2)
    assert all(map(torch.equal, inputs.run(), expected))
    inputs.features = inputs.features.transpose(2, 3).contiguous().transpose(2, 3)
    inputs.weight = inputs.weight.t().contiguous().t()
    assert all(map(torch.equal, inputs.run(), expected))


def test_gradients_have_their_inputs_layout(make) -> None:
    inputs = make(tokens=9)
    inputs.features = inputs.features.transpose(1, 2).contiguous().transpose(1, 2)
    dfeatures, dweight, dlogit = inputs.run()[1:]
    assert dfeatures.stride() == inputs.features.stride()
    assert dweight.is_contiguous()
    assert dlogit.shape == inputs.position_logit.shape


def test_starts_as_the_positional_term_alone(make) -> None:
    """w = 0: τ_tok is 0, its gradient in w is not."""
    inputs = make()
    inputs.weight.zero_()
    tau, dfeatures, dweight, _ = inputs.check()
    assert (dfeatures == 0).all()
    assert (dweight != 0).all()
    inputs.features = torch.randn_like(inputs.features)
    assert torch.equal(inputs.run()[0], tau)


@triton.jit
def tanh_kernel(x, result, block: tl.constexpr):
    place = tl.arange(0, block)
    tl.store(result + place, tanh(tl.load(x + place)))


def test_tanh_is_accurate_relative_to_its_size(device: torch.device) -> None:
    """Which τ, being 1 larger, does not show."""
    size = torch.logspace(-30, 8, 2048, dtype=torch.float64)
    x = torch.cat([-size, size, torch.linspace(-2, 2, 4096)]).float().to(device)
    result = torch.empty_like(x)
    tanh_kernel[(1,)](x, result, block=8192, enable_fp_fusion=True)
    torch.testing.assert_close(result.double(), torch.tanh(x.double()), rtol=4e-7, atol=0.0)


@pytest.mark.parametrize("size", [5.0, 9.0, 20.0, 40.0])
def test_gradient_of_a_saturated_temperature(device: torch.device, size: float) -> None:
    """1 − tanh² would lose all digits."""
    features = torch.full((1, 1, 4, 1), 3.0, device=device)
    weight = torch.full((1, 1), size / 3, device=device)
    dweight = inverse_temperature_backward(torch.ones(1, 1, 4, device=device), features, weight, None, None)[1]
    f = weight.double() * torch.nn.functional.gelu(features[0, 0, :1].double())
    exact = 4 * torch.nn.functional.gelu(torch.tensor(3.0, dtype=torch.float64)) / torch.cosh(f) ** 2
    torch.testing.assert_close(dweight.double(), exact.to(device), rtol=2e-5, atol=1e-37)


def test_large_features_are_finite(make) -> None:
    inputs = make(dim=8)
    inputs.features = inputs.features * 1e15
    assert all(x.isfinite().all() for x in inputs.run())


def test_same_bits_on_every_run(make) -> None:
    inputs = make(tokens=50)
    assert all(map(torch.equal, inputs.run(), inputs.run()))
