"""The operators: each backend against the float64 reference, forward and backward, within the error budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import exsel
from budget import assert_within_budget
from exsel import reference
from exsel.dispatch import Backend

LOW = [torch.float32, torch.bfloat16, torch.float16]
HEADS = [(1, 1), (3, 3), (6, 2), (4, 1)]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def make_strength(kind: Any, heads: int, tokens: int, dtype: torch.dtype, draws: int = 1) -> float | Tensor | None:
    """Of two sequences a draw."""
    if kind == "head":
        return leaf(heads, dtype=dtype)
    if kind == "token":
        return leaf(2 * draws, heads, tokens, dtype=dtype)
    assert kind is None or isinstance(kind, float)
    return kind


def as_reference(strength: float | Tensor | None, y: Tensor) -> Tensor | None:
    """α as the reference takes it: [B, H, T]."""
    if strength is None:
        return None
    if not isinstance(strength, Tensor):
        return torch.full(y.shape[:-1], strength, dtype=y.dtype)
    return strength[:, None].expand(y.shape[:-1]) if strength.ndim == 1 else strength


class TestExclude:
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
    @pytest.mark.parametrize("tokens", [1, 2, 7, 33, 130])
    @pytest.mark.parametrize("head_dim", [8, 33, 64])
    @pytest.mark.parametrize("kind", [None, 0.5, "head", "token"])
    def test_against_the_reference(
        self,
        dtype: torch.dtype,
        heads: int,
        kv_heads: int,
        tokens: int,
        head_dim: int,
        kind: Any,
    ) -> None:
        # Several draws of two sequences, judged together: the gradient of one head's strength is one number, and
        # eager's error on one number is a matter of luck.
        draws = 32 if tokens < 10 else 8
        y, v = (leaf(2 * draws, each, tokens, head_dim, dtype=dtype) for each in (heads, kv_heads))
        by_head = kind == "head"
        strength = leaf(draws, heads, dtype=dtype) if by_head else make_strength(kind, heads, tokens, dtype, draws)
        dz = torch.randn_like(y)

        def ours(y: Tensor, v: Tensor, strength: Any) -> Tensor:
            parts = zip(y.split(2), v.split(2), strength, strict=True) if by_head else [(y, v, strength)]
            return torch.cat([exsel.exclude(y, v, strength=alpha, backend="sdpa") for y, v, alpha in parts])

        def plain(y: Tensor, v: Tensor, strength: Any) -> Tensor:
            alpha = strength.repeat_interleave(2, dim=0)[..., None].expand(y.shape[:-1]) if by_head else strength
            return reference.exclude(y, v, as_reference(alpha, y), 1e-12)

        def with_gradients(function: Any, dtype: torch.dtype) -> list[Tensor]:
            inputs = [x.detach().to(dtype).requires_grad_() for x in (y, v, strength) if isinstance(x, Tensor)]
            z = function(*inputs[:2], inputs[2] if len(inputs) == 3 else strength)
            return [z, *torch.autograd.grad(z, inputs, dz.to(dtype))]

        got, eager = with_gradients(ours, dtype), with_gradients(plain, dtype)
        exact = with_gradients(plain, torch.float64)
        assert_within_budget(got[:1], exact[:1], eager[:1])
        assert_within_budget(got[1:], exact[1:], eager[1:])

    @pytest.mark.parametrize("kind", [None, 1.0, 0.0, 0.5, -2.0, "head", "token"])
    @pytest.mark.parametrize("eps", [1e-12, 3.0])
    def test_float64_equals_the_reference(self, kind: Any, eps: float) -> None:
        y, v = leaf(2, 6, 7, 8), leaf(2, 2, 7, 8)
        strength = make_strength(kind, 6, 7, torch.float64)
        inputs = [y, v, *([strength] if isinstance(strength, Tensor) else [])]
        dz = torch.randn_like(y)
        z = exsel.exclude(y, v, strength=strength, eps=eps)
        expected = reference.exclude(y, v, as_reference(strength, y), eps)
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(z, inputs, dz), torch.autograd.grad(expected, inputs, dz), rtol=1e-12, atol=1e-12
        )

    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
    @pytest.mark.parametrize("backend", ["auto", "reference", "sdpa"])
    def test_batch_dimensions(self, lead: tuple[int, ...], backend: Backend) -> None:
        y, v = torch.randn(*lead, 4, 5, 8), torch.randn(*lead, 2, 5, 8)
        flat = exsel.exclude(y.reshape(-1, 4, 5, 8), v.reshape(-1, 2, 5, 8), backend="reference")
        torch.testing.assert_close(exsel.exclude(y, v, backend=backend), flat.view_as(y))

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    @pytest.mark.parametrize("eps", [1e-12, 1.5], ids=["above eps", "some below eps"])
    @pytest.mark.parametrize("kind", [None, "head", "token"])
    def test_gradcheck(self, backend: Backend, eps: float, kind: str | None) -> None:
        y, v = leaf(2, 4, 2, 3), leaf(2, 2, 2, 3)
        strength = make_strength(kind, 4, 2, torch.float64)

        def run(y: Tensor, v: Tensor, strength: Tensor | None) -> Tensor:
            return exsel.exclude(y, v, strength=strength, eps=eps, backend=backend)

        assert torch.autograd.gradcheck(run, (y, v, strength))
        assert torch.autograd.gradgradcheck(run, (y, v, strength))

    def test_strength_by_token_for_all_heads(self) -> None:
        y, v, by_token = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.rand(2, 1, 5)
        expected = reference.exclude(y, v, by_token.expand(2, 4, 5), 1e-12)
        torch.testing.assert_close(exsel.exclude(y, v, strength=by_token), expected)

    def test_one_strength_a_head_even_where_tokens_are_as_many(self) -> None:
        y, v, by_head = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8), torch.rand(4)
        expected = reference.exclude(y, v, by_head[:, None].expand(1, 4, 4), 1e-12)
        torch.testing.assert_close(exsel.exclude(y, v, strength=by_head), expected)

    def test_strided_views(self) -> None:
        """The [B, T, H, D] that a projection gives, and a head taken out of a fused one."""
        fused = torch.randn(2, 5, 8, 6, requires_grad=True)
        y, v = fused[..., :4, :].transpose(1, 2), fused[..., 4:6, :].transpose(1, 2)
        assert not y.is_contiguous()
        dz = torch.randn(2, 5, 4, 6).transpose(1, 2)
        (got,) = torch.autograd.grad(exsel.exclude(y, v), fused, dz, retain_graph=True)
        (expected,) = torch.autograd.grad(exsel.exclude(y, v, backend="reference"), fused, dz)
        torch.testing.assert_close(exsel.exclude(y, v), exsel.exclude(y.contiguous(), v.contiguous()))
        torch.testing.assert_close(got, expected)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, tau_q: Tensor | None, tau_v: Tensor | None, own: Tensor | None
) -> Tensor:
    """What one would write around the stock kernel, whose own error is no business of these tests."""
    scaled_q = q if tau_q is None else (q * tau_q.unsqueeze(-1)).to(q.dtype)
    scaled_v = v if tau_v is None else (v * tau_v.unsqueeze(-1)).to(v.dtype)
    y = F.scaled_dot_product_attention(scaled_q, k, scaled_v, is_causal=True, enable_gqa=True)
    return y if own is None else reference.exclude(y, own, None, 1e-12)


class TestAttention:
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
    @pytest.mark.parametrize("tokens", [2, 7, 33, 130])
    @pytest.mark.parametrize(("head_dim", "exclusive"), [(8, True), (33, False), (64, True)])
    @pytest.mark.parametrize("selective", [False, True])
    def test_against_the_reference(
        self,
        dtype: torch.dtype,
        heads: int,
        kv_heads: int,
        tokens: int,
        head_dim: int,
        exclusive: bool,
        selective: bool,
    ) -> None:
        # Enough of them that the error of the gradient of a few scales is not a matter of luck.
        batch = 32 if tokens < 10 else 2
        q = leaf(batch, heads, tokens, head_dim, dtype=dtype)
        k, v = (leaf(batch, kv_heads, tokens, head_dim, dtype=dtype) for _ in range(2))
        inputs = [q, k, v]
        if selective:
            inputs += [(1 + torch.rand(batch, heads, tokens)).requires_grad_(),
                       (1 + torch.rand(batch, kv_heads, tokens)).requires_grad_()]  # fmt: skip
        inputs64 = [x.detach().double().requires_grad_() for x in inputs]
        dz = torch.randn_like(q)

        def ours(q: Tensor, k: Tensor, v: Tensor, tau_q: Tensor | None = None, tau_v: Tensor | None = None,
                 backend: Backend = "sdpa") -> Tensor:  # fmt: skip
            return exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=exclusive, query_scale=tau_q,
                                   value_scale=tau_v, backend=backend)  # fmt: skip

        def eager(q: Tensor, k: Tensor, v: Tensor, tau_q: Tensor | None = None, tau_v: Tensor | None = None) -> Tensor:
            return plain_attention(q, k, v, tau_q, tau_v, v if exclusive else None)

        got, plain, expected = ours(*inputs), eager(*inputs), ours(*inputs64, backend="reference")
        assert_within_budget([got], [expected], [plain])
        assert_within_budget(
            torch.autograd.grad(got, inputs, dz),
            torch.autograd.grad(expected, inputs64, dz.double()),
            torch.autograd.grad(plain, inputs, dz),
        )

    @pytest.mark.parametrize("dtype", [*LOW, torch.float64])
    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_one_token(self, dtype: torch.dtype, backend: Backend) -> None:
        """Alone, a token attends to itself: y = τ_v v, and nothing of it is left."""
        q, k, v = leaf(2, 4, 1, 8, dtype=dtype), leaf(2, 1, 1, 8, dtype=dtype), leaf(2, 1, 1, 8, dtype=dtype)
        tau_v = torch.full((2, 1, 1), 1.5)
        y = exsel.attention(q, k, v, enable_gqa=True, value_scale=tau_v, backend=backend)
        z = exsel.attention(q, k, v, enable_gqa=True, value_scale=tau_v, exclusive=True, backend=backend)
        gradients = torch.autograd.grad(z, (q, k, v), torch.randn_like(z))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y, (1.5 * v).to(dtype).expand_as(y), rtol=eps, atol=0)
        for nothing in (z, *gradients):
            assert nothing.double().norm() < 10 * eps * v.double().norm()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        ("backend", "options", "one_key"),
        [
            ("sdpa", {"is_causal": True}, [0]),
            ("sdpa", {"is_causal": True, "sliding_window": 1}, range(33)),
            ("sdpa", {"is_causal": True, "sliding_window": 2}, [0]),
            ("sdpa", {"sliding_window": 1}, range(33)),
            ("sdpa", {"sliding_window": 2}, []),
            ("sdpa", {"cu_seqlens": torch.arange(34)}, range(33)),
            ("sdpa", {"attn_mask": torch.eye(33).bool()}, range(33)),
        ],
    )
    def test_rows_of_few_keys(
        self, dtype: torch.dtype, backend: Backend, options: dict[str, Any], one_key: Sequence[int]
    ) -> None:
        """A row of one key has no gradient of its query, and rounding must not make one."""
        q, k, v = leaf(1, 4, 33, 64, dtype=dtype), leaf(1, 2, 33, 64, dtype=dtype), leaf(1, 2, 33, 64, dtype=dtype)
        tau, dz = torch.ones(1, 1, 33).requires_grad_(), torch.randn_like(q)

        def run(inputs: Sequence[Tensor], backend: Backend) -> tuple[Tensor, ...]:
            *qkv, tau = inputs
            z = exsel.attention(*qkv, enable_gqa=True, exclusive=True, query_scale=tau, backend=backend, **options)
            return torch.autograd.grad(z, inputs, dz.to(z.dtype))

        inputs = [q, k, v, tau]
        got = run(inputs, backend)
        rows = list(one_key)
        assert (got[0][:, :, rows].abs() < 2e-5).all()
        assert (got[3][..., rows].abs() < 2e-4).all()
        exact = run([x.detach().double().requires_grad_() for x in inputs], "reference")
        eager = run(inputs, "reference")
        for begin, end in ((0, 1), (1, 4), (4, 33)):
            part = slice(begin, end)
            few = [[x[..., part, :] for x in gradients[:3]] for gradients in (got, exact, eager)]
            assert_within_budget(*few)

    def test_one_key(self) -> None:
        q, k, v = (leaf(2, 4, tokens, 64, dtype=torch.bfloat16) for tokens in (5, 1, 1))
        own = torch.randn_like(q)
        dq, dk = torch.autograd.grad(
            exsel.attention(q, k, v, exclusive=True, own_value=own), (q, k), torch.randn_like(q)
        )
        assert dq.abs().max() < 2e-5
        assert dk.abs().max() < 2e-5

    @pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive"])
    @pytest.mark.parametrize(("num_queries", "num_keys"), [(7, 7), (1, 7), (7, 2)])
    @pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
    def test_float64_equals_the_reference(
        self, mask: str, num_queries: int, num_keys: int, lead: tuple[int, ...]
    ) -> None:
        q, k, v = leaf(*lead, 6, num_queries, 8), leaf(*lead, 2, num_keys, 8), leaf(*lead, 2, num_keys, 8)
        own, tau_q, tau_v = leaf(*lead, 2, num_queries, 8), leaf(6, num_queries), leaf(num_keys)
        attn_mask = None
        if mask == "boolean":
            attn_mask = torch.rand(num_queries, num_keys) < 0.7
        elif mask == "additive":
            attn_mask = torch.randn(6, num_queries, num_keys, dtype=torch.float64)
        inputs = (q, k, v, own, tau_q, tau_v)

        def run(backend: Backend) -> tuple[Tensor, ...]:
            z = exsel.attention(
                q,
                k,
                v,
                attn_mask=attn_mask,
                is_causal=mask == "causal",
                scale=0.3,
                enable_gqa=True,
                exclusive=True,
                strength=0.7,
                own_value=own,
                query_scale=tau_q,
                value_scale=tau_v,
                backend=backend,
            )
            return z, *torch.autograd.grad(z.square().sum(), inputs)

        torch.testing.assert_close(run("sdpa"), run("reference"), rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("backend", ["auto", "reference", "sdpa"])
    def test_plain_is_stock(self, backend: Backend) -> None:
        q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
        torch.testing.assert_close(exsel.attention(q, k, v, backend=backend), F.scaled_dot_product_attention(q, k, v))
        torch.testing.assert_close(
            exsel.attention(q, k, v, is_causal=True, backend=backend),
            F.scaled_dot_product_attention(q, k, v, is_causal=True),
        )

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_gradcheck(self, backend: Backend) -> None:
        def run(q: Tensor, k: Tensor, v: Tensor, tau_q: Tensor, tau_v: Tensor, strength: Tensor) -> Tensor:
            return exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, strength=strength,
                                   query_scale=tau_q, value_scale=tau_v, backend=backend)  # fmt: skip

        inputs = (leaf(1, 2, 3, 4), leaf(1, 1, 3, 4), leaf(1, 1, 3, 4), leaf(1, 2, 3), leaf(1, 1, 3), leaf(2))
        assert torch.autograd.gradcheck(run, inputs)
        if backend == "reference":
            assert torch.autograd.gradgradcheck(run, inputs)

    def test_second_derivative_is_right_or_refused(self) -> None:
        """A stock kernel may lack one; it must say so and never be silently wrong."""
        inputs = leaf(1, 2, 3, 4), leaf(1, 2, 3, 4), leaf(1, 2, 3, 4)

        def second(backend: Backend) -> tuple[Tensor, ...]:
            z = exsel.attention(*inputs, is_causal=True, exclusive=True, backend=backend)
            first = torch.autograd.grad(z.square().sum(), inputs, create_graph=True)
            return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)

        expected = second("reference")
        try:
            got = second("sdpa")
        except RuntimeError as error:
            assert "derivative" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_own_value_is_not_scaled(self, backend: Backend) -> None:
        """τ_v = 0 takes a token's value out of the mixture and leaves its direction to be excluded."""
        q, k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        tau_v = torch.tensor([1.0, 0.5, 0.0, -2.0, 3.0]).expand(1, 2, 5)
        z = exsel.attention(q, k, v, exclusive=True, value_scale=tau_v, backend=backend)
        y = exsel.attention(q, k, v * tau_v.unsqueeze(-1), backend="reference")
        torch.testing.assert_close(z, exsel.exclude(y, v, backend="reference"))
        assert ((z * v).sum(-1).abs() < 1e-5).all()

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_cached_step_equals_the_last_row(self, backend: Backend) -> None:
        q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
        whole = exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, backend=backend)
        step = exsel.attention(q[..., -1:, :], k, v, enable_gqa=True, exclusive=True, own_value=v[..., -1:, :],
                               backend=backend)  # fmt: skip
        torch.testing.assert_close(step, whole[..., -1:, :])

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_scale_and_query_scale_reach_the_scores(self, backend: Backend) -> None:
        q, k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        tau = torch.rand(1, 2, 5) + 0.5
        expected = torch.softmax(0.9 * tau.unsqueeze(-1) * (q @ k.mT), dim=-1) @ v
        torch.testing.assert_close(exsel.attention(q, k, v, scale=0.9, query_scale=tau, backend=backend), expected)

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_strided_views(self, backend: Backend) -> None:
        fused = torch.randn(2, 7, 12, 8)
        q, k, v = fused.transpose(1, 2).split(4, dim=1)
        packed = [x.contiguous() for x in (q, k, v)]
        torch.testing.assert_close(
            exsel.attention(q, k, v, is_causal=True, exclusive=True, backend=backend),
            exsel.attention(*packed, is_causal=True, exclusive=True, backend=backend),
        )

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_the_future_changes_nothing(self, backend: Backend) -> None:
        q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
        tau_q, tau_v = torch.rand(1, 4, 9), torch.rand(1, 2, 9)

        def run() -> Tensor:
            return exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, query_scale=tau_q,
                                   value_scale=tau_v, backend=backend)  # fmt: skip

        before = run()
        for tensor in (q, k, v):
            tensor[..., 5:, :] = torch.randn_like(tensor[..., 5:, :])
        tau_q[..., 5:], tau_v[..., 5:] = 3.0, 4.0
        after = run()
        assert torch.equal(before[..., :5, :], after[..., :5, :])
        assert not torch.isclose(before[..., 5:, :], after[..., 5:, :]).all(-1).any()

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    @pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 5), (5, 0)])
    @pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
    def test_no_tokens(self, backend: Backend, queries: int, keys: int, lead: tuple[int, ...]) -> None:
        """As stock attention: nothing of nothing, and zeros where nothing may be attended."""
        q, k, v, own = (leaf(*lead, 2, tokens, 8) for tokens in (queries, keys, keys, queries))
        z = exsel.attention(q, k, v, exclusive=True, own_value=own, backend=backend)
        gradients = torch.autograd.grad(z.sum(), (q, k, v, own))
        assert z.shape == q.shape
        assert all(not x.any() for x in (z, *gradients))
        with torch.no_grad():
            assert exsel.exclude(q, own, strength=0.5, backend=backend).shape == q.shape

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    @pytest.mark.parametrize("mask", [torch.arange(5) < 3, torch.tensor(True), torch.randn(5, 5).half()])
    @pytest.mark.parametrize("width", [8, 6])
    def test_masks_that_stock_attention_does_not_take(self, backend: Backend, mask: Tensor, width: int) -> None:
        q, k, v = leaf(2, 4, 5, 8), leaf(2, 4, 5, 8), leaf(2, 4, 5, width)
        wide = (mask if mask.dtype == torch.bool else mask.double()).expand(2, 4, 5, 5)
        got = exsel.attention(q, k, v, attn_mask=mask, exclusive=True, backend=backend)
        expected = reference.exclude(F.scaled_dot_product_attention(q, k, v, attn_mask=wide), v, None, 1e-12)
        torch.testing.assert_close(got, expected)

    def test_meta_tensors(self) -> None:
        """Shapes alone, as big models are first built."""
        q, k = torch.empty(2, 4, 5, 8, device="meta"), torch.empty(2, 2, 5, 8, device="meta")
        assert exsel.attention(q, k, k, is_causal=True, enable_gqa=True, exclusive=True).shape == q.shape
        assert exsel.exclude(q, k).is_meta
        assert exsel.inverse_temperature(q, torch.empty(4, 8, device="meta")).shape == (2, 4, 5)
        packed = torch.empty(3, dtype=torch.int32, device="meta")
        assert exsel.attention(q[:1], k[:1], k[:1], enable_gqa=True, cu_seqlens=packed).is_meta

    @pytest.mark.parametrize("backend", ["reference", "sdpa"])
    def test_dropout_of_everything(self, backend: Backend) -> None:
        q = torch.randn(1, 2, 5, 8)
        assert not exsel.attention(q, q, q, dropout_p=1.0, exclusive=True, backend=backend).any()


class TestInverseTemperature:
    def test_closed_form(self) -> None:
        features, weight, logit = leaf(2, 3, 4, 5), leaf(3, 5), leaf(3)
        position = torch.tensor([[1, 2, 3, 4], [1, 1, 2, 9]])
        token = torch.tanh(torch.einsum("bhtd,hd->bht", F.gelu(features), weight))
        expected = token + 1 + torch.sigmoid(logit)[:, None] * position.double().log()[:, None]
        tau = exsel.inverse_temperature(features, weight, position=position, position_logit=logit)
        torch.testing.assert_close(tau, expected)
        torch.testing.assert_close(exsel.inverse_temperature(features, weight), 1 + token)
        tau = exsel.inverse_temperature(
            features, weight, position=position, position_logit=logit, position_form="double_exponential"
        )
        expected = token + 1 + torch.exp(-torch.exp(logit))[:, None] * position.double().log()[:, None]
        torch.testing.assert_close(tau, expected)

    def test_gradcheck(self) -> None:
        def run(features: Tensor, weight: Tensor, logit: Tensor) -> Tensor:
            return exsel.inverse_temperature(features, weight, position=torch.arange(1, 4), position_logit=logit)

        inputs = (leaf(1, 2, 3, 4), leaf(2, 4), leaf(2))
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_token_on_a_cache_without_gradients(dtype: torch.dtype, masked: bool) -> None:
    query, key, value = (torch.randn(2, heads, tokens, 24, dtype=dtype) for heads, tokens in ((6, 1), (2, 9), (2, 9)))
    own = torch.randn(2, 1, 2, 24, dtype=dtype).transpose(1, 2)
    mask = torch.arange(9).expand(2, 1, 1, 9) < torch.tensor([9, 4]).view(2, 1, 1, 1) if masked else None
    given = (query, key, value, own)

    def run(tensors: Sequence[Tensor], backend: Any) -> Tensor:
        q, k, v, o = tensors
        return exsel.attention(q, k, v, attn_mask=mask, enable_gqa=True, exclusive=True, own_value=o, backend=backend)

    with torch.no_grad():
        before = [tensor.clone() for tensor in given]
        direct = run(given, "auto")
        exact = run([tensor.double() for tensor in given], "reference")
        assert_within_budget([direct], [exact], [run(given, "reference")])
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(given, before, strict=True))
    with pytest.raises(ValueError, match="enable_gqa"), torch.no_grad():
        exsel.attention(query, key, value, exclusive=True, own_value=own)
