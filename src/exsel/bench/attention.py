"""The contenders of attention and decoding: stock, the forms that people write by hand eager and compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from exsel import functional
from exsel.bench.cases import Case
from exsel.bench.measuring import Clock, Contender, Refused, Work, check_compiler
from exsel.dispatch import Backend

STOCK = ("baseline", "stock")
EXCLUSIVE, BOTH = "exclusive", "exclusive+selective"
#: Sequences that one token is decoded for.
BATCHES = (1, 8)

#: How far outputs may lie apart, of the largest: beyond it something is wrong and its time means nothing.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

Form = Callable[..., Tensor]


def normalize_form(y: Tensor, own_value: Tensor) -> Tensor:
    """Normalize, multiply, subtract: y ``[B, H, T, D]``, own_value ``[B, Hkv, T, D]``, grouped by broadcasting."""
    direction = F.normalize(own_value, dim=-1).unsqueeze(2)
    grouped = y.unflatten(1, (own_value.shape[1], -1))
    z: Tensor = (grouped - (grouped * direction).sum(dim=-1, keepdim=True) * direction).flatten(1, 2)
    return z


def dot_form(y: Tensor, own_value: Tensor) -> Tensor:
    """The dot product over the squared norm: no square root, and no unit vector in memory."""
    squared = (own_value * own_value).sum(dim=-1, keepdim=True).clamp_min(1e-12).unsqueeze(2)
    grouped, v = y.unflatten(1, (own_value.shape[1], -1)), own_value.unsqueeze(2)
    z: Tensor = (grouped - (grouped * v).sum(dim=-1, keepdim=True) / squared * v).flatten(1, 2)
    return z


def scale_form(x: Tensor, tau: Tensor) -> Tensor:
    """τ ⊙ x, a scaled copy: x ``[B, H, T, D]``, τ ``[B, H, T]``."""
    return (x * tau.unsqueeze(-1)).to(x.dtype)


#: From the names of what is written by hand to its form, and whether it is compiled.
_BY_HAND = {
    "eager normalize": (normalize_form, False),
    "compiled normalize": (normalize_form, True),
    "compiled dot": (dot_form, True),
}
#: Ours, as the tables call them; auto would be sdpa once more. The reference is measured only if it is named.
OURS = {f"exsel {backend}": backend for backend in get_args(Backend) if backend != "auto"}
NAMES = (*_BY_HAND, *OURS)
DEFAULT_NAMES = tuple(name for name in NAMES if name != "exsel reference")


def contenders(case: Case, clock: Clock, wanted: Collection[str], *, decode: bool = False) -> list[Contender]:
    """Everything that is measured in a case, its floor in front.

    Args:
        case: the shape; causal self-attention, forward and backward.
        clock: chooses the fastest stock kernel, where PyTorch has several.
        wanted: those of :data:`NAMES` to measure.
        decode: instead one new token on a cache of ``case.tokens``, exclusive, without gradients.
    """
    num_heads, num_kv_heads = case.shape.num_heads, case.shape.num_kv_heads
    floor = (f"batch {case.batch}", STOCK[1]) if decode else STOCK
    query = case.heads(num_heads, 1 if decode else None)
    key, value = case.heads(num_kv_heads), case.heads(num_kv_heads)
    own, gradient = value, None
    scales: tuple[Tensor, ...] = ()
    if decode:
        key, value = key.contiguous(), value.contiguous()  # a cache is [B, H, S, D] in memory
        own = value[:, :, -1:].transpose(1, 2).contiguous().transpose(1, 2)
    else:
        gradient = case.heads(num_heads)
        # Inverse temperatures as they are after some training: near 1.
        numbers = (torch.randn(case.batch, n, case.tokens, device=case.device) for n in (num_heads, num_kv_heads))
        scales = tuple(1 + 0.1 * number for number in numbers)
    given = (query, key, value, *scales)
    for tensor in given:
        tensor.requires_grad_(not decode)
    is_causal, grouped = not decode, num_heads != num_kv_heads

    def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=grouped)

    def by_hand(form: Form, q: Tensor, k: Tensor, v: Tensor, *scales: Tensor) -> Tensor:
        if scales:
            return form(stock(scale_form(q, scales[0]), k, scale_form(v, scales[1])), v)
        return form(stock(q, k, v), own if decode else v)

    def ours(backend: Backend, q: Tensor, k: Tensor, v: Tensor, *scales: Tensor) -> Tensor:
        query_scale, value_scale = scales or (None, None)
        return functional.attention(
            q,
            k,
            v,
            is_causal=is_causal,
            enable_gqa=grouped,
            exclusive=True,
            own_value=own if decode else None,
            query_scale=query_scale,
            value_scale=value_scale,
            backend=backend,
        )

    def work(form: Form, group: str) -> Work:
        inputs = given if group == BOTH else given[:3]

        def call() -> Tensor:
            with torch.set_grad_enabled(not decode):
                return form(*inputs)

        return Work(forward=call, inputs=inputs, gradient=gradient, name="decode" if decode else "forward")

    kernel = fastest_kernel(lambda: work(stock, ""), case.device, clock)
    groups = (floor[0],) if decode else (EXCLUSIVE, BOTH)
    with torch.no_grad(), nullcontext() if kernel is None else sdpa_kernel(kernel):
        largest = float(stock(query, key, value).abs().max())
        expected = {group: work(partial(by_hand, normalize_form), group).forward().detach() for group in groups}

    def prepare(name: str, group: str) -> Work:
        if name in OURS:
            prepared = work(partial(ours, OURS[name]), group)
        else:
            form, is_compiled = _BY_HAND[name]
            call = partial(by_hand, form)
            prepared = work(under(kernel, compiled(call) if is_compiled else call), group)
        check_output(prepared, expected[group], largest)
        return prepared

    chosen = [
        Contender(
            name=STOCK[1],
            group=floor[0],
            floor=floor,
            prepare=lambda: work(under(kernel, stock), ""),
            details={"kernel": "default" if kernel is None else kernel.name.lower().removesuffix("_attention")},
        )
    ]
    chosen += [
        Contender(name=name, group=group, floor=floor, prepare=partial(prepare, name, group))
        for group in groups
        for name in NAMES
        if name in wanted and (name, group) != ("compiled dot", BOTH)
    ]
    return chosen


def compiled(call: Form) -> Form:
    """The call under ``torch.compile``; :class:`Refused` without a compiler."""
    check_compiler()
    wrapped: Form = torch.compile(call, dynamic=False, fullgraph=True)
    return wrapped


def check_output(work: Work, expected: Tensor, largest: float) -> None:
    """Refuse work that does not compute what it should: a wrong result has no time."""
    # With gradients where it has them: without, torch.compile would compile it once more.
    apart = float((work.forward().detach() - expected).abs().max())
    if not apart <= _TOLERANCE[expected.dtype] * largest:
        raise Refused(f"wrong: its output lies {apart:.2g} from that of the eager form, of which {largest:.2g} is most")


def fastest_kernel(make: Callable[[], Work], device: torch.device, clock: Clock) -> SDPBackend | None:
    """The stock kernel with the shortest time for all passes; ``None`` where PyTorch has no choice (CPU)."""
    if device.type != "cuda":
        return None
    seconds: dict[SDPBackend, float] = {}
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        work = make()
        with sdpa_kernel(kernel):
            try:
                clock.time(work)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                continue  # PyTorch's way to say that a kernel does not take the shape or the chip
            seconds[kernel] = min(sum(clock.time(work).values()) for _ in range(3))
    return min(seconds, key=seconds.__getitem__) if seconds else SDPBackend.MATH


def under(kernel: SDPBackend | None, call: Form) -> Form:
    """The call with that kernel."""
    if kernel is None:
        return call

    def wrapped(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return call(*tensors)

    return wrapped
