"""One new token on a cache, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exsel import functional
from exsel.bench.attention import (
    DOT,
    EAGER,
    NORMALIZE,
    OURS,
    Form,
    check_output,
    compiled,
    fastest_kernel,
    kernel_name,
    under,
    use_kernel,
)
from exsel.bench.cases import Case
from exsel.bench.measuring import Contender
from exsel.bench.plain_forms import dot_form, normalize_form
from exsel.bench.timing import Clock, Work

BATCHES = (1, 8)


def contenders(case: Case, clock: Clock, wanted: Collection[str]) -> list[Contender]:
    """Everything that is measured with a cache of ``case.tokens`` tokens, its floor in front; exclusive only."""
    shape = case.shape
    group = f"batch {case.batch}"
    floor = (group, "stock")
    query, own_value = case.heads(shape.num_heads, tokens=1), case.heads(shape.num_kv_heads, tokens=1)
    # A cache is [B, H, S, D] in memory.
    key, value = case.heads(shape.num_kv_heads).contiguous(), case.heads(shape.num_kv_heads).contiguous()
    value[:, :, -1:] = own_value
    grouped = shape.num_heads != shape.num_kv_heads

    def stock(query: Tensor, key: Tensor, value: Tensor, own_value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)

    def plain(form: Form) -> Form:
        def exclusive(query: Tensor, key: Tensor, value: Tensor, own_value: Tensor) -> Tensor:
            return form(stock(query, key, value, own_value), own_value)

        return exclusive

    def ours(backend: Any) -> Form:
        def exclusive(query: Tensor, key: Tensor, value: Tensor, own_value: Tensor) -> Tensor:
            return functional.attention(
                query, key, value, enable_gqa=grouped, exclusive=True, own_value=own_value, backend=backend
            )

        return exclusive

    def work(form: Form) -> Work:
        def call() -> Tensor:
            with torch.no_grad():
                return form(query, key, value, own_value)

        return Work(forward=call, name="decode")

    kernel = fastest_kernel(lambda: work(stock), case.device, clock)
    with torch.no_grad(), use_kernel(kernel):
        largest = float(stock(query, key, value, own_value).abs().max())
        expected = plain(normalize_form)(query, key, value, own_value)

    def checked(prepare: Callable[[], Work]) -> Callable[[], Work]:
        def prepared() -> Work:
            work = prepare()
            check_output(work, expected, largest)
            return work

        return prepared

    makers: dict[str, Callable[[], Work]] = {
        EAGER: lambda: work(under(kernel, plain(normalize_form))),
        NORMALIZE: lambda: work(under(kernel, compiled(plain(normalize_form)))),
        DOT: lambda: work(under(kernel, compiled(plain(dot_form)))),
    }
    for name, backend in OURS.items():
        makers[name] = lambda b=backend: work(ours(b))  # type: ignore[misc]
    stock_contender = Contender(
        name="stock",
        group=group,
        floor=floor,
        prepare=lambda: work(under(kernel, stock)),
        details={"kernel": kernel_name(kernel)},
    )
    return [
        stock_contender,
        *(
            Contender(name=name, group=group, floor=floor, prepare=checked(maker))
            for name, maker in makers.items()
            if name in wanted
        ),
    ]
