"""Windows and packed sequences in pieces, against the float64 reference and beside stock attention with a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import exsel
from budget import assert_within_budget
from exsel import reference
from exsel.dispatch import Backend
from exsel.kernels import blocks

TOKENS = 77
PACKED = (0, 3, 3, 4, 33, 62, 63, 64, 77)
KINDS = [(1, None), (16, None), (100, None), (None, PACKED), (5, PACKED)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_FEWEST_QUERIES", 8)


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("window", "boundaries"), KINDS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_against_the_reference(
    dtype: torch.dtype,
    window: int | None,
    boundaries: tuple[int, ...] | None,
    is_causal: bool,
    exclusive: bool,
) -> None:
    """Forward and backward, with temperatures, beside what one would write around stock attention with a mask.

    Without gradients temperatures scale a block at a time.
    """
    shapes = [(1, heads, TOKENS, 33) for heads in (4, 2, 2)]
    inputs = [leaf(*shape, dtype=dtype) for shape in shapes]
    inputs += [(1 + torch.rand(1, heads, TOKENS, dtype=torch.promote_types(dtype, torch.float32))).requires_grad_()
               for heads in (4, 2)]  # fmt: skip
    cu_seqlens = None if boundaries is None else torch.tensor(boundaries)
    dz = torch.randn_like(inputs[0])

    def forward(inputs: Sequence[Tensor], backend: Backend) -> Tensor:
        *states, tau_q, tau_v = inputs
        return exsel.attention(*states, is_causal=is_causal, enable_gqa=True, exclusive=exclusive, query_scale=tau_q,
                               value_scale=tau_v, sliding_window=window, cu_seqlens=cu_seqlens,
                               backend=backend)  # fmt: skip

    def ours(inputs: Sequence[Tensor], backend: Backend) -> tuple[Tensor, ...]:
        z = forward(inputs, backend)
        return z, *torch.autograd.grad(z, inputs, dz.to(z.dtype))

    got = ours(inputs, "sdpa")
    exact = ours([x.detach().double().requires_grad_() for x in inputs], "reference")
    with torch.no_grad():
        unrecorded = forward(inputs, "sdpa")
    if dtype == torch.float64:
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(unrecorded, exact[0], rtol=1e-10, atol=1e-11)
        return
    q, k, v, tau_q, tau_v = inputs
    index = torch.arange(TOKENS)
    sequence = None if cu_seqlens is None else torch.searchsorted(cu_seqlens, index, right=True)
    # Of two dimensions: with three, stock attention takes another kernel.
    mask = reference.allowed(TOKENS, TOKENS, is_causal, window, sequence).view(TOKENS, TOKENS)
    scaled = (q * tau_q.unsqueeze(-1)).to(dtype), k, (v * tau_v.unsqueeze(-1)).to(dtype)
    plain = F.scaled_dot_product_attention(*scaled, attn_mask=mask, enable_gqa=True)
    plain = reference.exclude(plain, v, None, 1e-12) if exclusive else plain
    eager = (plain, *torch.autograd.grad(plain, inputs, dz))
    assert_within_budget(got[:1], exact[:1], eager[:1])
    assert_within_budget([unrecorded], exact[:1], eager[:1])
    assert_within_budget(got[1:], exact[1:], eager[1:])


def test_no_mask_of_all_queries_by_all_keys() -> None:
    """The masks of all pieces, which share them, stay as small as one block."""
    query = torch.empty(1, 1, 4096, 8)
    found = blocks.pieces(query, None, True, 16)
    assert len(found) == 256
    masks = {piece.mask.data_ptr(): piece.mask.numel() for piece in found if piece.mask is not None}
    assert sum(masks.values()) < 3 * 16 * 32
    equal = torch.arange(8).repeat_interleave(512).unsqueeze(0)
    (piece,) = blocks.pieces(query, equal, True, None)
    assert (piece.count, piece.length, piece.is_causal, piece.mask) == (8, 512, True, None)


def test_rows_of_a_batch_are_packed_by_themselves() -> None:
    sequence = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    q, k, v = (leaf(2, 2, 6, 8, dtype=torch.float64) for _ in range(3))
    mask = reference.allowed(6, 6, True, None, sequence)
    y, _ = blocks.forward_in_blocks(q, k, v, sequence, True, None, 8**-0.5)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("is_exclusive", [True, False])
@pytest.mark.parametrize(("window", "is_packed"), [(3, False), (3, True), (None, True)])
def test_opcheck(window: int | None, is_packed: bool, is_exclusive: bool) -> None:
    q, k, v = (torch.randn(2, heads, 20, 8) for heads in (4, 2, 2))
    sequence = (torch.arange(20) // 7).expand(2, -1).contiguous() if is_packed else None
    inputs, options = (q, k, v, None, None, None, sequence), (True, window, 0.3, 1e-12, is_exclusive)
    forward, backward = torch.ops.exsel.sdpa_attention.default, torch.ops.exsel.sdpa_attention_backward.default
    torch.library.opcheck(forward, (*inputs, *options))
    results = forward(*inputs, *options)
    torch.library.opcheck(backward, (torch.randn_like(q), *inputs, *results, *options))


@pytest.mark.parametrize("exclusive", [True, False])
def test_transforms(exclusive: bool) -> None:
    q, k, v = (torch.randn(3, 1, 2, 20, 8, dtype=torch.float64) for _ in range(3))
    bounds = torch.tensor([0, 9, 20])

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return exsel.attention(q, k, v, is_causal=True, exclusive=exclusive, sliding_window=4,
                               cu_seqlens=bounds).sin().sum()  # fmt: skip

    expected = torch.func.grad(lambda *qkv: sum(loss(*one) for one in zip(*qkv, strict=True)), (0, 1, 2))(q, k, v)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss, (0, 1, 2)))(q, k, v), expected)


def test_without_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks.stock, "choose_kernel", lambda *_: "math")
    q, k, v = (leaf(1, 2, 20, 8, dtype=torch.float64) for _ in range(3))

    def run(backend: Backend) -> tuple[Tensor, ...]:
        z = exsel.attention(q, k, v, is_causal=True, exclusive=True, sliding_window=5, backend=backend)
        return z, *torch.autograd.grad(z.square().sum(), (q, k, v))

    torch.testing.assert_close(run("sdpa"), run("reference"))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"sliding_window": 4}, "a window of 4.*\nNo mask"), ({"cu_seqlens": torch.tensor([0, 3, 20])}, "packed.*\nNo m"),
     ({"sliding_window": 4, "dropout_p": 0.1}, "are a mask of all queries by all keys")],
)  # fmt: skip
def test_explained(options: dict[str, object], words: str) -> None:
    q = torch.zeros(1, 2, 20, 8)
    text = exsel.explain_backend(q, q, q, is_causal=True, **options)  # type: ignore[arg-type]
    assert re.search(words, text, flags=re.DOTALL)
