"""The reference against the papers' formulas, written out here once more with loops and Python floats."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from exsel import reference


def float64(*shape: int, requires_grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def exclude_by_hand(y: Tensor, v: Tensor, strength: Tensor, eps: float) -> Tensor:
    z = torch.empty_like(y)
    batch, heads, tokens, _ = y.shape
    group = heads // v.shape[1]
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                row, own = y[b, h, t].tolist(), v[b, h // group, t].tolist()
                norm = max(math.sqrt(dot(own, own)), eps)
                unit = [x / norm for x in own]
                along = strength[b, h, t].item() * dot(row, unit)
                z[b, h, t] = torch.tensor([r - along * u for r, u in zip(row, unit, strict=True)], dtype=torch.float64)
    return z


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q [B, H, T, D]; k, v [B, Hkv, S, D]; allowed and bias [T, S]."""
    y = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = [j for j in range(k.shape[2]) if allowed[i, j]]
                scores = [
                    dot(q[b, h, i].tolist(), k[b, h // group, j].tolist()) * scale + bias[i, j].item() for j in keys
                ]
                weights = [math.exp(score) for score in scores]
                for j, weight in zip(keys, weights, strict=True):
                    y[b, h, i] += weight / math.fsum(weights) * v[b, h // group, j]
    return y


def cosine(z: Tensor, v: Tensor) -> Tensor:
    """|cos(z, v)|, accumulated in float64."""
    z, v = z.double(), v.double()
    return ((z * v).sum(-1) / (z.norm(dim=-1) * v.norm(dim=-1))).abs()


class TestExclude:
    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 2), (4, 1)])
    @pytest.mark.parametrize("eps", [1e-12, 2.0])
    def test_formula(self, heads: int, kv_heads: int, eps: float) -> None:
        y, v, strength = float64(2, heads, 5, 8), float64(2, kv_heads, 5, 8), float64(2, heads, 5)
        v[0, 0, 0] = 0
        torch.testing.assert_close(
            reference.exclude(y, v, strength, eps), exclude_by_hand(y, v, strength, eps), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            reference.exclude(y, v, None, eps),
            exclude_by_hand(y, v, torch.ones_like(strength), eps),
            rtol=1e-12,
            atol=1e-12,
        )

    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
    def test_any_number_of_batch_dimensions(self, lead: tuple[int, ...]) -> None:
        y, v = float64(*lead, 4, 5, 8), float64(*lead, 2, 5, 8)
        expected = exclude_by_hand(
            y.reshape(-1, 4, 5, 8), v.reshape(-1, 2, 5, 8), torch.ones(y.numel() // 160, 4, 5), 1e-12
        )
        torch.testing.assert_close(reference.exclude(y, v, None, 1e-12), expected.view_as(y), rtol=1e-12, atol=1e-12)

    def test_closed_forms(self) -> None:
        v = float64(1, 2, 3, 8)
        across = reference.exclude(float64(1, 2, 3, 8), v, None, 1e-12)
        along = 3 * v
        strength = torch.tensor(0.25, dtype=torch.float64).expand(1, 2, 3)
        torch.testing.assert_close(reference.exclude(along, v, None, 1e-12), torch.zeros_like(v))
        torch.testing.assert_close(reference.exclude(across, v, None, 1e-12), across)
        torch.testing.assert_close(reference.exclude(across + along, v, None, 1e-12), across)
        torch.testing.assert_close(reference.exclude(across + along, v, strength, 1e-12), across + 0.75 * along)
        torch.testing.assert_close(reference.exclude(across + along, v, 8 * strength, 1e-12), across - along)

    def test_strength_zero_changes_nothing(self) -> None:
        y, v = float64(1, 2, 3, 8), float64(1, 2, 3, 8)
        torch.testing.assert_close(reference.exclude(y, v, torch.zeros(1, 2, 3), 1e-12), y)

    def test_zero_value_leaves_the_output_exactly(self) -> None:
        y = torch.randn(1, 2, 3, 8)
        assert torch.equal(reference.exclude(y, torch.zeros_like(y), None, 1e-12), y)

    def test_below_eps_the_formula_acts_once(self) -> None:
        y = torch.tensor([[[[2.0, 1.0]]]])
        v = torch.tensor([[[[0.5, 0.0]]]])
        torch.testing.assert_close(reference.exclude(y, v, None, 1.0), torch.tensor([[[[1.5, 1.0]]]]))

    @pytest.mark.parametrize("strength", [None, 0.3])
    def test_symmetry_makes_dy_y_equal_dz_z(self, strength: float | None) -> None:
        """What lets a stock flash backward take z for y (spec §1)."""
        y, v, dz = float64(1, 4, 5, 8, requires_grad=True), float64(1, 2, 5, 8), float64(1, 4, 5, 8)
        alpha = None if strength is None else torch.tensor(strength, dtype=torch.float64).expand(1, 4, 5)
        z = reference.exclude(y, v, alpha, 1e-12)
        (dy,) = torch.autograd.grad(z, y, dz)
        torch.testing.assert_close((dy * y).sum(-1), (dz * z).sum(-1))

    def test_gradient_formulas(self) -> None:
        y, v, alpha = (float64(1, 4, 5, 8, requires_grad=True), float64(1, 2, 5, 8, requires_grad=True),
                       float64(1, 4, 5, requires_grad=True))  # fmt: skip
        dz = float64(1, 4, 5, 8)
        dy, dv, dalpha = torch.autograd.grad(reference.exclude(y, v, alpha, 1e-12), (y, v, alpha), dz)
        repeated = v.repeat_interleave(2, dim=1)
        norm = repeated.norm(dim=-1, keepdim=True)
        unit, a = repeated / norm, alpha.unsqueeze(-1)
        c, s = (y * unit).sum(-1, keepdim=True), (dz * unit).sum(-1, keepdim=True)
        torch.testing.assert_close(dy, dz - a * s * unit)
        torch.testing.assert_close(dalpha, -(c * s).squeeze(-1))
        torch.testing.assert_close(
            dv, (-a / norm * (c * (dz - s * unit) + s * (y - c * unit))).unflatten(1, (2, 2)).sum(2)
        )

    @pytest.mark.parametrize("eps", [1e-12, 1.5], ids=["above eps", "some below eps"])
    @pytest.mark.parametrize("with_strength", [False, True])
    def test_gradcheck(self, eps: float, with_strength: bool) -> None:
        y, v = float64(1, 4, 3, 4, requires_grad=True), float64(1, 2, 3, 4, requires_grad=True)
        if with_strength:
            inputs: tuple[Tensor | None, ...] = (y, v, float64(1, 4, 3, requires_grad=True))
        else:
            inputs = (y, v, None)
        assert torch.autograd.gradcheck(lambda *x: reference.exclude(*x, eps), inputs)
        assert torch.autograd.gradgradcheck(lambda *x: reference.exclude(*x, eps), inputs)

    def test_orthogonal_in_float32(self) -> None:
        y, v = torch.randn(4, 8, 130, 64), torch.randn(4, 8, 130, 64)
        z = reference.exclude(y, v, None, 1e-12)
        assert (z.norm(dim=-1) > 1e-3 * v.norm(dim=-1)).all()
        assert cosine(z, v).max() < 1e-6

    @pytest.mark.parametrize("exponent", [-10, -5, 0, 5, 10, 15])
    def test_independent_of_the_size_of_the_value(self, exponent: int) -> None:
        y, v = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
        expected = exclude_by_hand(y.double(), v.double(), torch.ones(1, 2, 9), 1e-12)
        z = reference.exclude(y, v * 10.0**exponent, None, 1e-12)
        torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-6)


class TestAttention:
    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (4, 1)])
    @pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (3, 6), (6, 3)])
    @pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive"])
    def test_formula(self, heads: int, kv_heads: int, num_queries: int, num_keys: int, mask: str) -> None:
        q, k, v = (float64(2, heads, num_queries, 8), float64(2, kv_heads, num_keys, 8),
                   float64(2, kv_heads, num_keys, 4))  # fmt: skip
        tau_q, tau_v = 1 + float64(2, heads, num_queries).tanh(), 1 + float64(2, kv_heads, num_keys).tanh()
        allowed, bias = torch.ones(num_queries, num_keys, dtype=torch.bool), torch.zeros(num_queries, num_keys)
        attn_mask = None
        if mask == "causal":
            allowed = allowed.tril()
        elif mask == "boolean":
            attn_mask = allowed = (torch.rand(num_queries, num_keys) < 0.5).index_fill(1, torch.tensor([0]), True)
        elif mask == "additive":
            attn_mask = bias = float64(num_queries, num_keys)
        y = reference.attention(q, k, v, attn_mask, 0.0, mask == "causal", 0.4, tau_q, tau_v)
        expected = attention_by_hand(q * tau_q.unsqueeze(-1), k, v * tau_v.unsqueeze(-1), allowed, bias, 0.4)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (3, 6), (6, 3)])
    @pytest.mark.parametrize("mask", ["none", "causal", "boolean", "boolean by head", "additive"])
    @pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
    def test_equals_stock(self, num_queries: int, num_keys: int, mask: str, lead: tuple[int, ...]) -> None:
        q, k, v = (float64(*lead, 4, num_queries, 8), float64(*lead, 2, num_keys, 8), float64(*lead, 2, num_keys, 8))
        attn_mask = None
        if mask == "boolean":
            attn_mask = torch.rand(num_queries, num_keys) < 0.6
        elif mask == "boolean by head":
            attn_mask = torch.rand(*lead, 4, num_queries, num_keys) < 0.6
        elif mask == "additive":
            attn_mask = float64(num_queries, num_keys).masked_fill(torch.rand(num_queries, num_keys) < 0.3, -math.inf)
        stock = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=mask == "causal", scale=0.7, enable_gqa=True
        )
        ours = reference.attention(q, k, v, attn_mask, 0.0, mask == "causal", 0.7, None, None)
        torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("additive", [False, True])
    def test_fully_masked_row_gives_zero_as_stock_does(self, additive: bool) -> None:
        q, k, v = float64(1, 2, 3, 8, requires_grad=True), float64(1, 2, 3, 8), float64(1, 2, 3, 8)
        mask = torch.tensor([[True, False, False], [False, False, False], [True, True, False]])
        attn_mask = torch.zeros(3, 3, dtype=torch.float64).masked_fill(~mask, -math.inf) if additive else mask
        ours = reference.attention(q, k, v, attn_mask, 0.0, False, 0.5, None, None)
        stock = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=0.5)
        assert torch.equal(ours[..., 1, :], torch.zeros_like(ours[..., 1, :]))
        torch.testing.assert_close(ours, stock)
        (dq,) = torch.autograd.grad(ours.sum(), q)
        assert torch.isfinite(dq).all()

    def test_dropout(self) -> None:
        q, k, v = float64(64, 4, 3, 8), float64(64, 4, 1, 8), float64(64, 4, 1, 8)
        assert not reference.attention(q, k, v, None, 1.0, False, 1.0, None, None).any()
        # One key has weight 1: dropped it leaves 0, kept it counts 1 / (1 - 0.25).
        kept = reference.attention(q, k, v, None, 0.25, False, 1.0, None, None) / (v / 0.75)
        torch.testing.assert_close(kept, kept.round())
        assert abs(kept.mean().item() - 0.75) < 0.06

    def test_gradcheck(self) -> None:
        inputs = (float64(1, 2, 3, 4, requires_grad=True), float64(1, 1, 3, 4, requires_grad=True),
                  float64(1, 1, 3, 4, requires_grad=True), float64(1, 2, 3, requires_grad=True),
                  float64(1, 1, 3, requires_grad=True))  # fmt: skip

        def attend(q: Tensor, k: Tensor, v: Tensor, tau_q: Tensor, tau_v: Tensor) -> Tensor:
            return reference.attention(q, k, v, None, 0.0, True, 0.5, tau_q, tau_v)

        assert torch.autograd.gradcheck(attend, inputs)
        assert torch.autograd.gradgradcheck(attend, inputs)


class TestInverseTemperature:
    def test_token_term_formula(self) -> None:
        features, weight = float64(2, 3, 4, 5), float64(3, 5)
        expected = torch.empty(2, 3, 4, dtype=torch.float64)
        for b in range(2):
            for h in range(3):
                for t in range(4):
                    gelu = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in features[b, h, t].tolist()]
                    expected[b, h, t] = math.tanh(dot(weight[h].tolist(), gelu))
        torch.testing.assert_close(reference.token_term(features, weight), expected)
        torch.testing.assert_close(
            reference.token_term(features, weight[:1])[:, 1], reference.token_term(features[:, 1:2], weight[:1])[:, 0]
        )

    def test_position_term_formula(self) -> None:
        position, logit = torch.tensor([[1, 2, 3], [1, 1, 100]]), float64(4)
        expected = torch.empty(2, 4, 3, dtype=torch.float64)
        for b in range(2):
            for h in range(4):
                for t in range(3):
                    gain = 1 / (1 + math.exp(-logit[h].item()))
                    expected[b, h, t] = 1 + gain * math.log(position[b, t].item())
        term = reference.position_term(position, logit)
        torch.testing.assert_close(term, expected)
        assert torch.equal(term[..., 0], torch.ones(2, 4, dtype=torch.float64)), "the first token has log 1 = 0"

    def test_coefficient_and_its_inverse(self) -> None:
        for form in ("sigmoid", "double_exponential"):
            for coefficient in (1e-9, 6e-4, 0.3, 0.999):
                logit = torch.tensor(reference.position_logit_of(coefficient, form), dtype=torch.float64)
                assert reference.position_coefficient(logit, form).item() == pytest.approx(coefficient, rel=1e-12)

    def test_linear_token_term(self) -> None:
        features, weight = float64(2, 4, 5, requires_grad=True), float64(3, 5, requires_grad=True)
        term = reference.linear_token_term(features, weight)
        torch.testing.assert_close(term, torch.tanh((features.unsqueeze(1) * weight.unsqueeze(1)).sum(-1)))
        assert torch.autograd.gradcheck(reference.linear_token_term, (features, weight))
        assert reference.linear_token_term(features.to("meta"), weight.to("meta")).shape == (2, 3, 4)

    def test_sum_of_the_terms(self) -> None:
        features, weight, logit, position = float64(2, 3, 4, 5), float64(3, 5), float64(1), torch.arange(1, 5)
        token = reference.token_term(features, weight)
        torch.testing.assert_close(reference.inverse_temperature(features, weight, None, None), 1 + token)
        torch.testing.assert_close(
            reference.inverse_temperature(features, weight, position, logit),
            token + reference.position_term(position, logit),
        )

    def test_gradcheck(self) -> None:
        inputs = (float64(1, 2, 3, 4, requires_grad=True), float64(2, 4, requires_grad=True),
                  float64(2, requires_grad=True))  # fmt: skip

        def tau(features: Tensor, weight: Tensor, logit: Tensor) -> Tensor:
            return reference.inverse_temperature(features, weight, torch.arange(1, 4), logit)

        assert torch.autograd.gradcheck(tau, inputs)
        assert torch.autograd.gradgradcheck(tau, inputs)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_stays_in_float32(self, dtype: torch.dtype) -> None:
        """1 + 6e-4 log n is 1 in bfloat16."""
        features, weight = torch.zeros(1, 1, 2, 4, dtype=dtype), torch.zeros(1, 4, dtype=dtype)
        logit = torch.tensor([math.log(6e-4 / (1 - 6e-4))]).to(dtype)
        tau = reference.inverse_temperature(features, weight, torch.tensor([1, 2]), logit)
        assert tau.dtype == torch.float32
        assert 1 + 4e-4 < tau[0, 0, 1] < 1 + 4.4e-4


def test_sums_accumulate_in_float32() -> None:
    y = torch.randn(1, 4, 33, 64, dtype=torch.bfloat16)
    z = reference.exclude(y, y, None, 1e-12)
    assert z.dtype == torch.bfloat16
    assert (z.double().norm(dim=-1) < 1e-6 * y.double().norm(dim=-1)).all()
