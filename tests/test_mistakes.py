"""Mistakes seen in other implementations: each test names one, fails on it, and passes on ours.

A test holds a property against ours and against the mistake, written out here: what the mistake passes too would
prove nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import exsel
from exsel import ExselConfig, ExselForCausalLM, SelectiveConfig
from exsel.dispatch import Backend
from exsel.kernels import exclude as exclude_operators
from exsel.nn import KVCache, SelfAttention, Temperature

Projection = Callable[[Tensor, Tensor], Tensor]
Attend = Callable[..., Tensor]


@contextmanager
def expect(holds: bool) -> Iterator[None]:
    """The assertions inside hold, or one of them fails."""
    if holds:
        yield
        return
    with pytest.raises(AssertionError):
        yield


def exclude_with(backend: Backend) -> Projection:
    return lambda y, v: exsel.exclude(y, v, backend=backend)


def attend_with(backend: Backend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return exsel.attention(q, k, v, backend=backend, **options)

    return attend


def projections(*mistakes: Projection) -> pytest.MarkDecorator:
    ours = [pytest.param(exclude_with(backend), True, id=backend) for backend in ("reference", "sdpa", "auto")]
    return pytest.mark.parametrize(
        ("project", "right"), [*ours, *(pytest.param(mistake, False, id=mistake.__name__) for mistake in mistakes)]
    )


def attentions(*mistakes: Attend) -> pytest.MarkDecorator:
    ours = [pytest.param(attend_with(backend), True, id=backend) for backend in ("reference", "sdpa", "auto")]
    return pytest.mark.parametrize(
        ("attend", "right"), [*ours, *(pytest.param(mistake, False, id=mistake.__name__) for mistake in mistakes)]
    )


def cosine(z: Tensor, v: Tensor) -> Tensor:
    z, v = z.double(), v.double()
    return ((z * v).sum(-1) / (z.norm(dim=-1) * v.norm(dim=-1)).clamp_min(1e-30)).abs()


def qkv(tokens: int = 9, heads: int = 4, kv_heads: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = heads if kv_heads is None else kv_heads
    return torch.randn(2, heads, tokens, 16), torch.randn(2, kv_heads, tokens, 16), torch.randn(2, kv_heads, tokens, 16)


# 1. rms_norm where normalize is meant: it subtracts D times too much.


def over_subtract(y: Tensor, v: Tensor) -> Tensor:
    unit = F.rms_norm(v, v.shape[-1:])
    return y - (y * unit).sum(-1, keepdim=True) * unit


@projections(over_subtract)
def test_1_over_subtraction(project: Projection, right: bool) -> None:
    y, v = torch.randn(2, 4, 9, 64), torch.randn(2, 4, 9, 64)
    with expect(right):
        assert cosine(project(y, v), v).max() < 1e-6
        assert (project(y, v).norm(dim=-1) <= y.norm(dim=-1) * (1 + 1e-6)).all(), "a projection never lengthens"


# 2. Masking the diagonal instead of projecting: the direction comes back through the other tokens.


def mask_the_diagonal(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    tokens = q.shape[-2]
    allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril(-1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


@attentions(mask_the_diagonal)
def test_2_masked_diagonal(attend: Attend, right: bool) -> None:
    q, k, v = qkv()
    z = attend(q, k, v, is_causal=True, exclusive=True)
    with expect(right):
        assert cosine(z[..., 1:, :], v[..., 1:, :]).max() < 1e-6


# 3. A mean over the tokens, or anything else that reads the future.


def mean_over_tokens(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    unit = F.normalize(v, dim=-1)
    return y - (y * unit).sum(-1, keepdim=True).mean(-2, keepdim=True) * unit


@attentions(mean_over_tokens)
def test_3_reading_the_future(attend: Attend, right: bool) -> None:
    q, k, v = qkv()
    before = attend(q, k, v, is_causal=True, exclusive=True)
    for tensor in (q, k, v):
        tensor[..., 5:, :] += 3.0
    after = attend(q, k, v, is_causal=True, exclusive=True)
    with expect(right):
        torch.testing.assert_close(after[..., :5, :], before[..., :5, :])


# 4. Repeating v for the heads of its group: at 8 query heads a head it reads and writes 8 times as much.


def repeat_the_value(y: Tensor, v: Tensor) -> Tensor:
    unit = F.normalize(v, dim=-1).repeat_interleave(y.shape[-3] // v.shape[-3], dim=-3)
    return y - (y * unit).sum(-1, keepdim=True) * unit


def expand_and_copy(y: Tensor, v: Tensor) -> Tensor:
    v = v.unsqueeze(-3).expand(*v.shape[:-2], y.shape[-3] // v.shape[-3], *v.shape[-2:]).flatten(-4, -3)
    return repeat_the_value(y, v)


class LargestFromSmall(TorchDispatchMode):
    """Elements of the largest storage made from tensors of no more than ``limit`` elements."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.largest, self.calls = limit, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if func is torch.ops.exsel.exclude.default:
            with self:  # what it does inside, too
                return exclude_operators._exclude(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if given and all(self.stored(x) <= self.limit for x in given):
            made = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
            self.largest = max(self.largest, *(self.stored(x) for x in made), 0)
        return result

    @staticmethod
    def stored(x: Tensor) -> int:
        return x.untyped_storage().nbytes() // x.element_size()


@projections(repeat_the_value, expand_and_copy)
def test_4_repeated_values(project: Projection, right: bool) -> None:
    # More heads a value than dimensions, so that even one number a head is more than v.
    y, v = torch.randn(2, 32, 9, 16, requires_grad=True), torch.randn(2, 1, 9, 16, requires_grad=True)
    watch = LargestFromSmall(v.numel())
    with watch:
        z = project(y, v)
    assert watch.calls > 0, "else nothing was watched"
    with expect(right):
        assert watch.largest <= v.numel()
    torch.testing.assert_close(z, repeat_the_value(y, v))


@pytest.mark.parametrize(("project", "right"), [(exsel.exclude, True), (repeat_the_value, False)])
def test_4_saved_for_the_backward(project: Projection, right: bool) -> None:
    """The fast path keeps y and v, which attention has kept anyway, and nothing else."""
    y, v = torch.randn(2, 8, 9, 16, requires_grad=True), torch.randn(2, 1, 9, 16, requires_grad=True)
    saved: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.add(x.untyped_storage().data_ptr()) or x, lambda x: x
    ):
        project(y, v)
    with expect(right):
        assert saved <= {y.untyped_storage().data_ptr(), v.untyped_storage().data_ptr()}


# 5. With a cache, v has more rows than y: the wrong rows, or none.


def first_rows(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return exsel.exclude(y, v[..., : q.shape[-2], :])


def last_slots(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return exsel.exclude(y, v[..., -q.shape[-2] :, :])


def skipped_where_shapes_differ(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return exsel.exclude(y, v) if y.shape == v.shape else y


@attentions(first_rows, last_slots, skipped_where_shapes_differ)
def test_5_rows_of_a_static_cache(attend: Attend, right: bool) -> None:
    """Nine tokens in a cache of twelve slots; the last two are the new ones."""
    q, k, v = qkv()
    whole = exsel.attention(q, k, v, is_causal=True, exclusive=True, backend="reference")
    slots = [F.pad(x, (0, 0, 0, 3), value=1.0) for x in (k, v)]
    allowed = torch.arange(12) <= torch.tensor([[7], [8]])
    step = attend(q[..., 7:, :], *slots, attn_mask=allowed, exclusive=True, own_value=v[..., 7:, :])
    with expect(right):
        torch.testing.assert_close(step, whole[..., 7:, :])


class SkipsAtDecode(SelfAttention):
    def forward(self, x: Tensor, *, cache: KVCache | None = None, **options: Any) -> Tensor:
        if cache is None or cache.seen == 0:
            return super().forward(x, cache=cache, **options)
        plain = copy.copy(self)
        plain._modules = {**self._modules, "exclusive": None}
        return SelfAttention.forward(plain, x, cache=cache, **options)


@pytest.mark.parametrize(("layer_class", "right"), [(SelfAttention, True), (SkipsAtDecode, False)])
def test_5_decoding(layer_class: type[SelfAttention], right: bool) -> None:
    layer, x, cache = layer_class(32, 4, 2), torch.randn(2, 9, 32), KVCache()
    steps = torch.cat([layer(part, cache=cache) for part in x.split(1, dim=1)], dim=1)
    with expect(right):
        torch.testing.assert_close(steps, layer(x))


# 6. No ε, or one that half precision rounds to 0.


def without_eps(y: Tensor, v: Tensor) -> Tensor:
    unit = v / v.norm(dim=-1, keepdim=True)
    return y - (y * unit).sum(-1, keepdim=True) * unit


def eps_on_the_square(y: Tensor, v: Tensor) -> Tensor:
    return y - (y * v).sum(-1, keepdim=True) / ((v * v).sum(-1, keepdim=True) + 1e-12) * v


@projections(without_eps, eps_on_the_square)
def test_6_zero_and_tiny_values(project: Projection, right: bool) -> None:
    with expect(right):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            y, v = torch.randn(1, 2, 4, 16).to(dtype), torch.zeros(1, 2, 4, 16, dtype=dtype)
            y.requires_grad_()
            v.requires_grad_()
            z = project(y, v)
            dy, dv = torch.autograd.grad(z.sum(), (y, v))
            assert torch.equal(z, y)
            assert torch.isfinite(dy).all()
            assert torch.isfinite(dv).all()
            tiny = torch.full((1, 2, 4, 16), 1e-6, dtype=dtype)
            assert cosine(project(y, tiny), tiny).max() < 2 * torch.finfo(dtype).eps


# 7. The value's temperature on the output, by the query's position, instead of on V.


def scale_the_output(q: Tensor, k: Tensor, v: Tensor, value_scale: Tensor, **_: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True) * value_scale.unsqueeze(-1)


@attentions(scale_the_output)
def test_7_scaled_outputs(attend: Attend, right: bool) -> None:
    q, k, v = qkv()
    tau = torch.ones(2, 4, 9)
    before = attend(q, k, v, is_causal=True, value_scale=tau)
    tau[..., 4] = 0.0
    after = attend(q, k, v, is_causal=True, value_scale=tau)
    weights = (q @ k.mT / 4).masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf).softmax(-1)
    with expect(right):
        torch.testing.assert_close(before - after, weights[..., 4:5] * v[..., 4:5, :], rtol=1e-4, atol=1e-6)


# 8. Learned scales that are made and never applied.


class MakesAndForgets(SelfAttention):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        plain = copy.copy(self)
        plain._modules = {**self._modules, "temperatures": nn.ModuleDict()}
        return SelfAttention.forward(plain, x, **options)


@pytest.mark.parametrize(("layer_class", "right"), [(SelfAttention, True), (MakesAndForgets, False)])
def test_8_parameters_without_effect(layer_class: type[SelfAttention], right: bool) -> None:
    layer = layer_class(32, 4, 2, exclusive="learned", selective=SelectiveConfig(key=True))
    x = torch.randn(2, 9, 32)
    before = layer(x)
    before.square().sum().backward()
    new = [p for name, p in layer.named_parameters() if "temperatures" in name or "strength" in name]
    assert len(new) == 7
    with expect(right):
        for parameter in new:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0
            with torch.no_grad():
                parameter.add_(1.0)
                assert (layer(x) - before).abs().max() > 1e-4
                parameter.sub_(1.0)


# 9. A scale of one's own that a backend leaves out.


def forgets_the_scale(q: Tensor, k: Tensor, v: Tensor, query_scale: Tensor | None = None, **_: Any) -> Tensor:
    return F.scaled_dot_product_attention(q if query_scale is None else q * query_scale.unsqueeze(-1), k, v)


def forgets_the_query_scale(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, **_: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@attentions(forgets_the_scale, forgets_the_query_scale)
def test_9_scales_ignored(attend: Attend, right: bool) -> None:
    q, k, v = qkv()
    tau = torch.rand(2, 4, 9) + 0.5
    with expect(right):
        torch.testing.assert_close(attend(q, k, v, scale=0.9), (0.9 * q @ k.mT).softmax(-1) @ v)
        torch.testing.assert_close(attend(q, k, v, query_scale=tau), (q * tau.unsqueeze(-1) @ k.mT / 4).softmax(-1) @ v)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_9_temperatures_in_each_attention_implementation(implementation: str) -> None:
    config = ExselConfig(
        vocab_size=31, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, selective=SelectiveConfig(key=True)
    )
    config._attn_implementation = implementation
    model = ExselForCausalLM(config).eval()
    ids = torch.randint(31, (1, 9))
    with torch.no_grad():
        before = model(ids).logits
        for name, temperature in model.model.layers[0].self_attn.temperatures.items():
            assert isinstance(temperature, Temperature)
            assert temperature.position_logit is not None
            start = temperature.position_logit.clone()
            temperature.position_logit.fill_(4.0)
            assert (model(ids).logits - before).abs().max() > 1e-5, name
            temperature.position_logit.copy_(start)


# 10. Positions counted on across packed documents.


def restart(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)


def count_on(lengths: list[int]) -> Tensor:
    return torch.arange(sum(lengths)).unsqueeze(0)


@pytest.mark.parametrize(("positions", "right"), [(restart, True), (count_on, False)])
def test_10_positions_across_documents(positions: Callable[[list[int]], Tensor], right: bool) -> None:
    """Rotary embedding would not notice: it is of differences. log n does."""
    lengths = [4, 5]
    layer = SelfAttention(32, 4, 2, selective=SelectiveConfig(position_init=0.3))
    x = torch.randn(1, 9, 32)
    document = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))
    packed = layer(x, attn_mask=document[:, None] == document, position_ids=positions(lengths))
    separate = torch.cat([layer(part) for part in x.split(lengths, dim=1)], dim=1)
    with expect(right):
        torch.testing.assert_close(packed, separate)


# 11. Cross-attention changed by accident: its queries have no value of their own.


def takes_some_rows(q: Tensor, k: Tensor, v: Tensor, exclusive: bool = True, **_: Any) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v)
    return exsel.exclude(y, v[..., -q.shape[-2] :, :]) if exclusive else y


def quietly_does_nothing(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def exclusive_unasked(q: Tensor, k: Tensor, v: Tensor, exclusive: bool = True, **_: Any) -> Tensor:
    if exclusive and q.shape != k.shape:
        raise ValueError("own_value")
    return exsel.exclude(F.scaled_dot_product_attention(q, k, v), v[..., : q.shape[-2], :])


@attentions(takes_some_rows, quietly_does_nothing, exclusive_unasked)
def test_11_cross_attention(attend: Attend, right: bool) -> None:
    q, (_, k, v) = qkv(tokens=4)[0], qkv(tokens=9)
    refused = True
    try:
        attend(q, k, v, exclusive=True)
    except ValueError as error:
        assert "own_value" in str(error)  # noqa: PT017 (a mistake may not raise at all)
    else:
        refused = False
    with expect(right):
        assert refused, "exclusive cross-attention is refused"
        torch.testing.assert_close(attend(q, k, v, exclusive=False), F.scaled_dot_product_attention(q, k, v))
