"""The operators as PyTorch sees them: registration, tracing, memory, determinism."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

import exsel
from exsel import reference
from exsel.dispatch import Backend
from exsel.kernels import exclude as exclude_operators
from exsel.kernels import sdpa, stock
from exsel.kernels.exclude import HAS_TRITON

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")


@pytest.fixture(params=["cpp", pytest.param("triton", marks=needs_triton)])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The passes in C++ (or PyTorch, without a compiler), or in Triton's interpreter, as on a GPU."""
    if request.param == "triton":
        from exsel.kernels import triton_passes

        for module in (exclude_operators, sdpa):
            monkeypatch.setattr(module, "passes_for", lambda x: triton_passes)
    language: str = request.param
    return language


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def strengths(kind: str) -> Tensor | None:
    return {"none": None, "head": torch.rand(4)[None, :, None].expand(2, 4, 7).requires_grad_()}[kind]


def fixed(*tensors: Tensor | None) -> list[Tensor | None]:
    """Without gradients, which are the business of the autograd function around an operator."""
    return [None if x is None else x.detach() for x in tensors]


@pytest.mark.parametrize("kind", ["none", "head"])
@pytest.mark.usefixtures("language")
def test_exclude_passes_opcheck(kind: str) -> None:
    inputs = fixed(leaf(2, 4, 7, 8), leaf(2, 2, 7, 8), strengths(kind))
    torch.library.opcheck(torch.ops.exsel.exclude.default, (*inputs, 1e-12))
    torch.library.opcheck(torch.ops.exsel.exclude_backward.default, (torch.randn(2, 4, 7, 8), *inputs, 1e-12))


def test_the_dispatcher_calls_the_kernel() -> None:
    """Without any Python of PyTorch's in between, which takes longer than a small pass."""
    y, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    operator = torch.ops.exsel.exclude.default
    operator(y, v, None, 1e-12)  # finds what is kept
    entered: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            entered.append(frame.f_code.co_qualname)

    with torch.no_grad():
        sys.setprofile(note)
        try:
            operator(y, v, None, 1e-12)
        finally:
            sys.setprofile(None)
    assert entered[:2] == ["OpOverload.__call__", "_exclude"]


@pytest.mark.parametrize("kind", ["none", "head"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [7, 20])
def test_stock_attention_passes_opcheck(kind: str, masked: bool, tokens: int) -> None:
    q, k, v = leaf(2, 4, tokens, 8), leaf(2, 2, tokens, 8), leaf(2, 2, tokens, 8)
    mask = torch.zeros(2, 4, tokens, tokens) if masked else None
    strength = None if kind == "none" else torch.rand(2, 4, tokens).requires_grad_()
    inputs, options = (*fixed(q, k, v, v, strength, mask), None), (not masked, None, 0.3, 1e-12, True)
    torch.library.opcheck(torch.ops.exsel.sdpa_attention.default, (*inputs, *options))
    results = torch.ops.exsel.sdpa_attention(*inputs, *options)
    torch.library.opcheck(
        torch.ops.exsel.sdpa_attention_backward.default, (torch.randn_like(results[0]), *inputs, *results, *options)
    )


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of distinct memory that the backward will read."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = run()
    assert kept.grad_fn is not None
    return sum(storages.values())


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("language")
def test_saves_four_bytes_a_token_and_head_more_than_plain_attention(
    heads: tuple[int, int], dtype: torch.dtype
) -> None:
    """With what follows it, which saves its own input: z."""
    q, k, v = leaf(2, heads[0], 33, 16, dtype=dtype), *(leaf(2, heads[1], 33, 16, dtype=dtype) for _ in range(2))
    weight = leaf(16, 16, dtype=dtype)

    def run(exclusive: bool) -> Tensor:
        z = exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=exclusive, backend="sdpa")
        return z @ weight

    more = saved_bytes(lambda: run(True)) - saved_bytes(lambda: run(False))
    assert more == 4 * 2 * heads[0] * 33
    eager = saved_bytes(
        lambda: (
            reference.exclude(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), v, None, 1e-12)
            @ weight
        )
    )
    assert saved_bytes(lambda: run(True)) < eager


@pytest.mark.usefixtures("language")
class TestAttentionOperator:
    def inputs(self) -> list[Tensor]:
        return [leaf(2, 4, 20, 16), leaf(2, 2, 20, 16), leaf(2, 2, 20, 16), leaf(2, 4, 20), leaf(2, 2, 20), leaf(4)]

    def run(self, inputs: list[Tensor]) -> Tensor:
        q, k, v, tau_q, tau_v, strength = inputs
        return exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, strength=strength,
                               query_scale=tau_q, value_scale=tau_v, backend="sdpa")  # fmt: skip

    def test_same_bits_on_every_run(self) -> None:
        inputs, dz = self.inputs(), torch.randn(2, 4, 20, 16)

        def once() -> tuple[Tensor, ...]:
            z = self.run(inputs)
            return z, *torch.autograd.grad(z, inputs, dz)

        for first, second in zip(once(), once(), strict=True):
            assert torch.equal(first, second)

    def test_gradient_checkpointing(self) -> None:
        inputs, dz = self.inputs(), torch.randn(2, 4, 20, 16)
        plain = torch.autograd.grad(self.run(inputs), inputs, dz)
        checkpointed = torch.utils.checkpoint.checkpoint(
            lambda *given: self.run(list(given)), *inputs, use_reentrant=False
        )
        torch.testing.assert_close(torch.autograd.grad(checkpointed, inputs, dz), plain, rtol=0, atol=0)

    def test_compiled_equals_eager(self) -> None:
        torch.compiler.reset()
        inputs, dz = self.inputs(), torch.randn(2, 4, 20, 16)
        compiled = torch.compile(lambda *given: self.run(list(given)), fullgraph=True, backend="aot_eager")
        got, expected = compiled(*inputs), self.run(inputs)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, inputs, dz), torch.autograd.grad(expected, inputs, dz))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype: torch.dtype) -> None:
        inputs = self.inputs()
        with torch.autocast("cpu", dtype=dtype):
            z = self.run(inputs)
        assert z.dtype == dtype
        low = [x.to(dtype) for x in inputs[:3]] + inputs[3:]
        torch.testing.assert_close(z, self.run(low), rtol=0, atol=0)
        assert all(x.dtype == torch.float32 for x in torch.autograd.grad(z.float().sum(), inputs))

    def test_gradient_of_one_input_alone(self) -> None:
        inputs, dz = self.inputs(), torch.randn(2, 4, 20, 16)
        everything = torch.autograd.grad(self.run(inputs), inputs, dz)
        for index in range(len(inputs)):
            alone = [x.detach().requires_grad_(index == place) for place, x in enumerate(inputs)]
            (got,) = torch.autograd.grad(self.run(alone), alone[index], dz)
            torch.testing.assert_close(got, everything[index], rtol=0, atol=0)


def test_vmap_of_stock_attention() -> None:
    q, k, v = torch.randn(3, 2, 4, 20, 8), torch.randn(3, 2, 2, 20, 8), torch.randn(3, 2, 2, 20, 8)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True)

    torch.testing.assert_close(torch.func.vmap(run)(q, k, v), torch.stack([run(*x) for x in zip(q, k, v, strict=True)]))

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(q, k, v).sin().sum()

    expected = torch.func.grad(lambda q: sum(loss(*x) for x in zip(q, k, v, strict=True)))(q)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(q, k, v), expected)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["flash", "cudnn", "efficient"])
def test_traces_for_a_gpu_without_one(
    kv_heads: int, dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes that the stock CUDA kernels promise fit what we pass on from forward to backward."""
    if kernel == "efficient" and kv_heads == 2:
        pytest.skip("never chosen with grouped heads")
    # PyTorch's own choice needs a build with CUDA.
    monkeypatch.setattr(stock, "choose_kernel", lambda *_: kernel)
    with FakeTensorMode(), torch.no_grad():
        q = torch.empty(2, 64, 4, 64, dtype=dtype, device="cuda").transpose(1, 2)
        k, v = (torch.empty(2, kv_heads, 64, 64, dtype=dtype, device="cuda") for _ in range(2))
        z = exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True)
        assert z.device.type == "cuda"
        assert z.shape == q.shape
        z, logsumexp, along = torch.ops.exsel.sdpa_attention(
            q, k, v, v, None, None, None, True, None, 0.125, 1e-12, True
        )
        assert logsumexp.shape[:3] == along.shape == q.shape[:3]
        gradients = torch.ops.exsel.sdpa_attention_backward(
            z, q, k, v, v, None, None, None, z, logsumexp, along, True, None, 0.125, 1e-12, True
        )
        for x, gradient in zip((q, k, v, v), gradients[:4], strict=True):
            assert gradient.shape == x.shape
            assert gradient.dtype == dtype


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("with_strength", [True, False])
def test_the_backward_is_of_the_kernel_that_ran(inside: bool, with_strength: bool) -> None:
    """Whatever PyTorch would choose by then."""
    q, k, v = leaf(2, 4, 20, 16), leaf(2, 2, 20, 16), leaf(2, 2, 20, 16)
    strength = torch.full((4,), 0.5) if with_strength else None
    options: dict[str, Any] = {"is_causal": True, "enable_gqa": True, "exclusive": True, "strength": strength}

    def gradients(forward_by: SDPBackend, backward_by: SDPBackend) -> tuple[Tensor, ...]:
        with sdpa_kernel(forward_by):
            z = exsel.attention(q, k, v, **options)
        with sdpa_kernel(backward_by):
            return torch.autograd.grad(z.square().sum(), (q, k, v))

    kinds = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    forward_by, backward_by = kinds if inside else reversed(kinds)
    torch.testing.assert_close(gradients(forward_by, backward_by), gradients(forward_by, forward_by))


def negated(*shape: int) -> Tensor:
    """A tensor whose sign is a note beside its memory."""
    x = torch.randn(*shape, 2).requires_grad_()
    lazy = torch.view_as_complex(x).conj().imag
    assert lazy.is_neg()
    return lazy


def test_the_negative_bit() -> None:
    y, v, tau = negated(2, 4, 33, 64), negated(2, 4, 33, 64), negated(2, 4, 33)

    def everything(y: Tensor, v: Tensor, tau: Tensor) -> tuple[Tensor, ...]:
        z = exsel.exclude(y, v)
        halved = exsel.exclude(y, v, strength=tau)
        attended = exsel.attention(y, v, v, exclusive=True, strength=tau, query_scale=tau, value_scale=tau)
        return z, halved, attended

    plain = tuple(x.resolve_neg().detach().requires_grad_() for x in (y, v, tau))
    got, expected = everything(y, v, tau), everything(*plain)
    torch.testing.assert_close(got, expected)
    total = sum(x.sin().sum() for x in got), sum(x.sin().sum() for x in expected)
    torch.testing.assert_close(
        torch.autograd.grad(total[0], (y, v, tau)), torch.autograd.grad(total[1], plain), rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        torch.testing.assert_close(everything(y, v, tau), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own import
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("name", ["exclude", "attention"])
def test_tangents_are_carried_or_refused(name: str, with_gradient: bool) -> None:
    """Forward-mode differentiation, also where no other is recorded."""
    y, v, direction = (torch.randn(1, 2, 3, 16) for _ in range(3))

    def run(y: Tensor, backend: Backend) -> Tensor:
        if name == "exclude":
            return exsel.exclude(y, v, backend=backend)
        return exsel.attention(y, y, v, exclusive=True, backend=backend)

    _, expected = torch.func.jvp(lambda y: run(y, "reference"), (y,), (direction,))
    with torch.set_grad_enabled(with_gradient):
        torch.testing.assert_close(torch.func.jvp(lambda y: run(y, "auto"), (y,), (direction,))[1], expected)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(y, direction)
            tangent = forward_ad.unpack_dual(run(dual, "auto")).tangent
            torch.testing.assert_close(tangent, expected)
            with pytest.raises(NotImplementedError, match="no forward-mode derivative: use backend='reference'"):
                run(dual, "sdpa")
        with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
            torch.func.jvp(lambda y: run(y, "sdpa"), (y,), (direction,))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_tensors_that_stand_for_others(with_gradient: bool) -> None:
    """Fake ones, zeros without memory, and ones that are traced: none is read by its pointer."""
    y, v = torch.randn(2, 4, 20, 16), torch.randn(2, 2, 20, 16)

    def both(y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return exsel.exclude(y, v), exsel.attention(y, v, v, is_causal=True, enable_gqa=True, exclusive=True)

    with torch.set_grad_enabled(with_gradient):
        with FakeTensorMode() as mode:
            fakes = both(mode.from_tensor(y), mode.from_tensor(v))
        assert all(isinstance(fake, FakeTensor) and fake.shape == y.shape for fake in fakes)
        zeros = both(torch._efficientzerotensor(y.shape), v)
        assert all(not zero.any() for zero in zeros[:1])
        traced = make_fx(both)(y, v)
        torch.testing.assert_close(traced(-y, 2 * v), both(-y, 2 * v))


def test_compiled_for_every_length() -> None:
    """Traced once, with the sizes as symbols, two calls in one graph."""
    torch.compiler.reset()

    def run(q: Tensor, k: Tensor, v: Tensor, tau: Tensor) -> Tensor:
        z = exsel.attention(q, k, v, is_causal=True, enable_gqa=True, exclusive=True, query_scale=tau)
        return exsel.exclude(z, v, strength=0.5)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, tokens in ((3, 20), (5, 24)):  # no two sizes alike
        inputs = [leaf(batch, 4, tokens, 16), leaf(batch, 2, tokens, 16), leaf(batch, 2, tokens, 16),
                  leaf(batch, 4, tokens)]  # fmt: skip
        dz = torch.randn(batch, 4, tokens, 16)
        with torch.compiler.set_stance("default" if tokens == 20 else "fail_on_recompile"):
            got = compiled(*inputs)
            expected = run(*inputs)
            torch.testing.assert_close(got, expected)
            torch.testing.assert_close(
                torch.autograd.grad(got, inputs, dz), torch.autograd.grad(expected, inputs, dz), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("with_gradient", [True, False])
def test_compiled_where_nothing_is_differentiated(with_gradient: bool) -> None:
    """As a model with its weights frozen, and as one that generates."""
    torch.compiler.reset()
    q, v = torch.randn(2, 4, 20, 16), torch.randn(2, 2, 20, 16)

    def run(q: Tensor, v: Tensor) -> Tensor:
        z = exsel.attention(q, v, v, is_causal=True, enable_gqa=True, exclusive=True)
        return exsel.exclude(z, v, strength=0.5)

    with torch.set_grad_enabled(with_gradient):
        torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(q, v), run(q, v))


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("with_strength", [True, False])
def test_a_compiler_gets_one_token_as_formulas(tokens: int, with_strength: bool) -> None:
    """On a cache of 20 keys; more tokens are one operator."""
    torch.compiler.reset()
    q, k, v, own = leaf(2, 4, tokens, 16), leaf(2, 2, 20, 16), leaf(2, 2, 20, 16), leaf(2, 2, tokens, 16)
    strength = leaf(4) if with_strength else None
    inputs = [x for x in (q, k, v, own, strength) if x is not None]
    called: set[str] = set()

    def note(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        called.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        boxed: Callable[..., Any] = make_boxed_func(graph.forward)
        return boxed

    def run(q: Tensor, k: Tensor, v: Tensor, own: Tensor, strength: Tensor | None = None) -> Tensor:
        return exsel.attention(q, k, v, exclusive=True, own_value=own, strength=strength, enable_gqa=True)

    got, expected = torch.compile(run, fullgraph=True, backend=aot_autograd(fw_compiler=note))(*inputs), run(*inputs)
    assert any("exsel" in name for name in called) == (tokens > 1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs)
    )


def test_compiled_where_keys_are_values() -> None:
    torch.compiler.reset()
    inputs, dz = (leaf(2, 4, 20, 16), leaf(2, 4, 20, 16)), torch.randn(2, 4, 20, 16)

    def run(q: Tensor, k: Tensor) -> Tensor:
        return exsel.attention(q, k, k, is_causal=True, exclusive=True)

    got, expected = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), run(*inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, inputs, dz), torch.autograd.grad(expected, inputs, dz))


def test_packed_sequences_compiled() -> None:
    torch.compiler.reset()
    q, bounds = torch.randn(1, 2, 20, 16), torch.tensor([0, 3, 20])

    def run(q: Tensor, bounds: Tensor) -> Tensor:
        return exsel.attention(q, q, q, is_causal=True, exclusive=True, sliding_window=4, cu_seqlens=bounds)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, bounds), run(q, bounds))
    with pytest.raises(RuntimeError, match="rising from 0 to the 20 tokens"):
        compiled(q, torch.tensor([0, 3, 19]))


def mismatched() -> list[tuple[dict[str, Any], str]]:
    q, k = torch.zeros(1, 4, 20, 16), torch.zeros(1, 2, 20, 16)
    return [
        ({"query": q, "key": k.to("meta"), "value": k}, "on one device, got query on cpu, key on meta"),
        ({"query": q, "key": k, "value": k, "exclusive": True, "strength": torch.ones(4, device="meta")},
         "strength on meta"),
        ({"query": q, "key": k, "value": k, "sliding_window": 0}, "sliding_window must be at least 1"),
        ({"query": q, "key": k, "value": k, "cu_seqlens": torch.tensor([0.0, 20.0])}, "cu_seqlens must be integers"),
        ({"query": q.expand(2, -1, -1, -1), "key": k.expand(2, -1, -1, -1), "value": k.expand(2, -1, -1, -1),
          "cu_seqlens": torch.tensor([0, 20])}, "the batch must be 1"),
        ({"query": q, "key": k, "value": k, "exclusive": True, "own_value": k[:, :, :5]}, "own_value must hold one"),
    ]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), mismatched())
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exsel.attention(**arguments, enable_gqa=True)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("boundaries", [None, (0, 3, 3, 4, 20)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_windows_and_packed_sequences(
    backend: Backend, window: int | None, boundaries: tuple[int, ...] | None, is_causal: bool
) -> None:
    """Against each sequence by itself, with the window written out as a mask."""
    q, k, v = torch.randn(1, 4, 20, 16), torch.randn(1, 2, 20, 16), torch.randn(1, 2, 20, 16)
    cu_seqlens = None if boundaries is None else torch.tensor(boundaries, dtype=torch.int32)
    got = exsel.attention(q, k, v, is_causal=is_causal, enable_gqa=True, exclusive=True, sliding_window=window,
                          cu_seqlens=cu_seqlens, backend=backend)  # fmt: skip
    edges = boundaries or (0, 20)
    parts = []
    for begin, end in itertools.pairwise(edges):
        own = [x[:, :, begin:end] for x in (q, k, v)]
        index = torch.arange(end - begin)
        distance = index[:, None] - index
        mask = distance.abs() < (window or 1000)
        mask = mask & (distance >= 0) if is_causal else mask
        parts.append(exsel.attention(*own, attn_mask=mask, enable_gqa=True, exclusive=True, backend="reference"))
    torch.testing.assert_close(got, torch.cat(parts, dim=2), rtol=1e-4, atol=1e-5)
