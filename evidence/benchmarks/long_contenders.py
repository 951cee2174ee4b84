"""The contenders of long cases: a sliding window, and packed sequences, each beside a dense mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import exsel
from exsel.bench.attention import EXCLUSIVE, check_output, normalize_form
from exsel.bench.cases import Case
from exsel.bench.measuring import Clock, Contender, Work

#: Tokens that a token sees; of short sequences a quarter.
WINDOW = 1024


def window_contenders(case: Case, _: Clock) -> list[Contender]:
    """Causal attention in a window, forward and backward; the floor is stock attention that sees everything."""
    window = min(WINDOW, case.tokens // 4)
    grouped = case.shape.num_heads != case.shape.num_kv_heads
    inputs = _inputs(case)

    def stock(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    def mask() -> Tensor:
        rows = torch.arange(case.tokens, device=case.device)
        apart = rows[:, None] - rows[None, :]
        return (apart >= 0) & (apart < window)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return exsel.attention(q, k, v, is_causal=True, enable_gqa=grouped, exclusive=True, sliding_window=window)

    return _contenders("stock, whole", stock, inputs, partial(_masked, grouped), mask, ours, inputs)


def packed_contenders(case: Case, _: Clock) -> list[Contender]:
    """The case's sequences packed into one, forward and backward; the floor is exsel's call on them as a batch."""
    grouped = case.shape.num_heads != case.shape.num_kv_heads
    batch = _inputs(case)
    row = [
        tensor.detach().transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2).requires_grad_() for tensor in batch
    ]
    starts = torch.arange(case.batch + 1, device=case.device, dtype=torch.int32) * case.tokens

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return exsel.attention(q, k, v, is_causal=True, enable_gqa=grouped, exclusive=True)

    def mask() -> Tensor:
        places = torch.arange(case.batch * case.tokens, device=case.device)
        sequence = places // case.tokens
        return (sequence[:, None] == sequence[None, :]) & (places[:, None] >= places[None, :])

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return exsel.attention(q, k, v, is_causal=True, enable_gqa=grouped, exclusive=True, cu_seqlens=starts)

    return _contenders("exsel, as a batch", whole, batch, partial(_masked, grouped), mask, ours, row)


def _inputs(case: Case) -> list[Tensor]:
    shape = case.shape
    return [case.heads(count).requires_grad_() for count in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)]


def _masked(grouped: bool, mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What people write: a dense mask, and the two lines."""
    return normalize_form(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped), v)


def _contenders(
    floor: str,
    floor_call: Callable[..., Tensor],
    floor_inputs: list[Tensor],
    masked_call: Callable[..., Tensor],
    mask: Callable[[], Tensor],
    ours: Callable[..., Tensor],
    inputs: list[Tensor],
) -> list[Contender]:
    def work(call: Callable[..., Tensor], given: list[Tensor]) -> Work:
        return Work(forward=lambda: call(*given), inputs=tuple(given), gradient=torch.randn_like(given[0]))

    def prepare_masked() -> Work:
        return work(partial(masked_call, mask()), inputs)

    def prepare_ours() -> Work:
        prepared = work(ours, inputs)
        with torch.no_grad():
            expected = masked_call(mask(), *inputs)
        check_output(prepared, expected, float(expected.abs().max()))
        return prepared

    key = ("baseline", floor)
    return [
        Contender(name=floor, group="baseline", floor=key, prepare=lambda: work(floor_call, floor_inputs)),
        Contender(name="dense mask", group=EXCLUSIVE, floor=key, prepare=prepare_masked),
        Contender(name="exsel", group=EXCLUSIVE, floor=key, prepare=prepare_ours),
    ]
