"""Attention forward and backward: stock, the plain forms eager and compiled, and ours by each backend."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from exsel import functional
from exsel.bench.cases import Case
from exsel.bench.measuring import Contender, Refused
from exsel.bench.plain_forms import dot_form, normalize_form, scale_form
from exsel.bench.timing import Clock, Work
from exsel.dispatch import Backend
from exsel.machine import can_compile

STOCK = ("baseline", "stock")
EXCLUSIVE, BOTH = "exclusive", "exclusive+selective"
EAGER, NORMALIZE, DOT = "eager normalize", "compiled normalize", "compiled dot"

#: Ours, as the tables call them. The reference is there to be right; name it to have it measured.
OURS = {f"exsel {backend}": backend for backend in get_args(Backend)}
NAMES = (EAGER, NORMALIZE, DOT, *OURS)
DEFAULT_NAMES = tuple(name for name in NAMES if name != "exsel reference")

#: How far outputs may lie apart, of the largest: beyond it something is wrong and its time means nothing.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

Form = Callable[..., Tensor]


def contenders(case: Case, clock: Clock, wanted: Collection[str]) -> list[Contender]:
    """Everything that is measured in a case, its floor in front.

    Args:
        case: the shape; causal self-attention.
        clock: chooses the fastest stock kernel, where PyTorch has several.
        wanted: those of :data:`NAMES` to measure.
    """
    shape = case.shape
    query, key, value = case.heads(shape.num_heads), case.heads(shape.num_kv_heads), case.heads(shape.num_kv_heads)
    # Inverse temperatures as they are after some training: near 1.
    query_scale = 1 + 0.1 * torch.randn(case.batch, shape.num_heads, case.tokens, device=case.device)
    value_scale = 1 + 0.1 * torch.randn(case.batch, shape.num_kv_heads, case.tokens, device=case.device)
    tensors = (query, key, value, query_scale, value_scale)
    for tensor in tensors:
        tensor.requires_grad_()
    gradient = case.heads(shape.num_heads)
    grouped = shape.num_heads != shape.num_kv_heads

    def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)

    def plain(form: Form) -> dict[str, Form]:
        def exclusive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return form(stock(query, key, value), value)

        def both(query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, value_scale: Tensor) -> Tensor:
            y = stock(scale_form(query, query_scale), key, scale_form(value, value_scale))
            return form(y, value)

        return {EXCLUSIVE: exclusive, BOTH: both}

    def ours(backend: Any) -> dict[str, Form]:
        def exclusive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return functional.attention(
                query, key, value, is_causal=True, enable_gqa=grouped, exclusive=True, backend=backend
            )

        def both(query: Tensor, key: Tensor, value: Tensor, query_scale: Tensor, value_scale: Tensor) -> Tensor:
            return functional.attention(
                query,
                key,
                value,
                is_causal=True,
                enable_gqa=grouped,
                exclusive=True,
                query_scale=query_scale,
                value_scale=value_scale,
                backend=backend,
            )

        return {EXCLUSIVE: exclusive, BOTH: both}

    def work(form: Form, group: str) -> Work:
        inputs = tensors if group == BOTH else tensors[:3]
        return Work(forward=lambda: form(*inputs), inputs=inputs, gradient=gradient)

    kernel = fastest_kernel(lambda: work(stock, STOCK[0]), case.device, clock)
    with torch.no_grad(), use_kernel(kernel):
        largest = float(stock(query, key, value).abs().max())
        eager = plain(normalize_form)
        expected = {group: eager[group](*(tensors if group == BOTH else tensors[:3])) for group in eager}
    chosen: list[Contender] = []

    def add(name: str, group: str, prepare: Callable[[], Work], **details: Any) -> None:
        def checked() -> Work:
            prepared = prepare()
            if group in expected:
                check_output(prepared, expected[group], largest)
            return prepared

        chosen.append(Contender(name=name, group=group, floor=STOCK, prepare=checked, details=details))

    add(STOCK[1], STOCK[0], lambda: work(under(kernel, stock), STOCK[0]), kernel=kernel_name(kernel))
    for group in (EXCLUSIVE, BOTH):
        for name, form, is_compiled in (
            (EAGER, normalize_form, False),
            (NORMALIZE, normalize_form, True),
            (DOT, dot_form, True),
        ):
            if name in wanted and not (name == DOT and group == BOTH):
                call = plain(form)[group]
                maker = compiled if is_compiled else _as_it_is
                add(name, group, lambda c=call, m=maker, g=group: work(under(kernel, m(c)), g))  # type: ignore[misc]
        for name, backend in OURS.items():
            if name in wanted:
                call = ours(backend)[group]
                add(name, group, lambda c=call, g=group: work(c, g))  # type: ignore[misc]
    return chosen


def _as_it_is(call: Form) -> Form:
    return call


def compiled(call: Form) -> Form:
    """The call under ``torch.compile``.

    Raises:
        Refused: there is no compiler.
    """
    if not can_compile():
        raise Refused("torch.compile needs a C++ compiler (g++ or clang++), and there is none")
    wrapped: Form = torch.compile(call, dynamic=False, fullgraph=True)
    return wrapped


def check_output(work: Work, expected: Tensor, largest: float) -> None:
    """Check that the work computes what it should: a wrong result has no time.

    Raises:
        Refused: it does not.
    """
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
                work.run()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                continue  # PyTorch's way to say that a kernel does not take the shape or the chip
            clock.time(work)
            seconds[kernel] = min(sum(clock.time(work).values()) for _ in range(3))
    return min(seconds, key=seconds.__getitem__) if seconds else SDPBackend.MATH


def kernel_name(kernel: SDPBackend | None) -> str:
    """As the results say it."""
    return "default" if kernel is None else kernel.name.lower().removesuffix("_attention")


def use_kernel(kernel: SDPBackend | None) -> AbstractContextManager[None]:
    """Where stock attention runs that kernel."""
    return nullcontext() if kernel is None else sdpa_kernel(kernel)


def under(kernel: SDPBackend | None, call: Form) -> Form:
    """The call with that kernel."""
    if kernel is None:
        return call

    def wrapped(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return call(*tensors)

    return wrapped
