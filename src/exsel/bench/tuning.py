"""The search behind ``--tune``: which block sizes our Triton kernels run fastest with on this GPU.

From the configuration that would be used now to its best neighbour (one block size doubled or halved, more or fewer
warps or stages), and on until no neighbour is faster. A candidate that does not compile, does not fit on the chip or
computes something else is left out.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import triton.errors
from torch import Tensor

from exsel.bench.cases import Case
from exsel.bench.timing import Clock, Work
from exsel.kernels.triton.tuning import Config, choose_config, padded

#: From the names of what a configuration holds to what is tried.
_BOUNDS = {"num_warps": (1, 16), "num_stages": (1, 5)}
_BLOCK_BOUNDS = (16, 256)
_STEPS, _REPEATS = 4, 15

#: A launcher with everything but its configuration; returns what it wrote.
Launch = Callable[[Config], Sequence[Tensor]]


class Display(Protocol):
    """Someone to tell what is going on."""

    def case(self, title: str, number: int, of: int) -> None:
        """A kernel begins."""
        ...

    def doing(self, what: str) -> None:
        """A candidate is tried."""
        ...


@dataclass(frozen=True)
class Tried:
    """A candidate, and its seconds: infinitely many where it is of no use."""

    config: Config
    seconds: float


def tune(
    cases: Sequence[Case],
    clock: Clock,
    display: Display,
    found: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Search every kernel for every case.

    Args:
        cases: one a head dimension; what is found for it is used for all shapes of that head dimension and dtype.
        clock: measures.
        display: is told what happens.
        found: what was found before, in the form of ``configs/CHIP.json``; what is found now goes there.
        keep: is given it after each search.
    """
    searches = [(name, case) for case in cases for name in LAUNCHES]
    for number, (name, case) in enumerate(searches):
        display.case(f"{name}, head_dim {case.shape.head_dim}", number, len(searches))
        launch = LAUNCHES[name](case)
        start = choose_config(name, case.shape.head_dim, case.dtype, case.device)
        best = search(launch, start, clock, display)
        by_size = found.setdefault(name, {}).setdefault(str(case.dtype.itemsize), {})
        by_size[str(padded(case.shape.head_dim))] = best.config
        keep(found)


def search(launch: Launch, start: Config, clock: Clock, display: Display) -> Tried:
    """The fastest configuration that a walk from ``start`` finds."""
    expected = launch(start)
    tried: dict[tuple[tuple[str, int], ...], Tried] = {}

    def attempt(config: Config) -> Tried:
        key = tuple(sorted(config.items()))
        if key not in tried:
            display.doing(", ".join(f"{name} {value}" for name, value in config.items()))
            tried[key] = Tried(config, _seconds(launch, config, expected, clock))
        return tried[key]

    best = attempt(start)
    for _ in range(_STEPS):
        fastest = min((attempt(config) for config in neighbours(best.config)), key=lambda one: one.seconds)
        if fastest.seconds >= best.seconds:
            break
        best = fastest
    return best


def neighbours(config: Config) -> list[Config]:
    """The configurations that differ in one step of one value."""
    near = []
    for name, value in config.items():
        low, high = _BOUNDS.get(name, _BLOCK_BOUNDS)
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        near += [{**config, name: step} for step in steps if low <= step <= high]
    return near


def _seconds(launch: Launch, config: Config, expected: Sequence[Tensor], clock: Clock) -> float:
    try:
        outputs = launch(config)
    except (triton.errors.TritonError, ValueError):
        return float("inf")  # it does not compile, or needs more than the chip has
    for output, other in zip(outputs, expected, strict=True):
        apart = (output.float() - other.float()).abs().max()
        if not apart <= 0.02 * other.float().abs().max():
            return float("inf")
    work = Work(forward=lambda: launch(config)[0])
    return statistics.median(clock.time(work)[work.name] for _ in range(_REPEATS))


def _attention(case: Case) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    shape = case.shape
    tensors = (case.heads(shape.num_heads), case.heads(shape.num_kv_heads), case.heads(shape.num_kv_heads))
    options = {
        "exclusive": True,
        "strength": None,
        "query_scale": None,
        "value_scale": None,
        "cu_seqlens": None,
        "is_causal": True,
        "window": None,
        "scale": shape.head_dim**-0.5,
        "eps": 1e-12,
    }
    return tensors, options


def _attention_forward(case: Case) -> Launch:
    from exsel.kernels.triton.attention import attention_forward

    tensors, options = _attention(case)

    def launch(config: Config) -> Sequence[Tensor]:
        z, logsumexp, _ = attention_forward(*tensors, **options, config=config)
        return z, logsumexp

    return launch


def _attention_backward(case: Case, which: str) -> Launch:
    """``which``: the keyword of the launch that is searched; the others stay as they would be."""
    from exsel.kernels.triton.attention import attention_forward
    from exsel.kernels.triton.attention_backward import attention_backward

    tensors, options = _attention(case)
    forward = attention_forward(*tensors, **options)
    dz = case.heads(case.shape.num_heads)

    def launch(config: Config) -> Sequence[Tensor]:
        searched: dict[str, Any] = options | {which: config}
        return attention_backward(dz, *tensors, *forward, **searched)[:3]

    return launch


def _decode(case: Case) -> Launch:
    from exsel.kernels.triton.decode import decode

    shape = case.shape
    query, own_value = case.heads(shape.num_heads, tokens=1), case.heads(shape.num_kv_heads, tokens=1)
    key, value = case.heads(shape.num_kv_heads).contiguous(), case.heads(shape.num_kv_heads).contiguous()

    def launch(config: Config) -> Sequence[Tensor]:
        z = decode(
            query,
            key,
            value,
            own_value,
            strength=None,
            query_scale=None,
            value_scale=None,
            attn_mask=None,
            scale=shape.head_dim**-0.5,
            eps=1e-12,
            config=config,
        )
        return (z,)

    return launch


#: From the kernels of ``configs/defaults.json`` to their launchers on a case.
LAUNCHES: Mapping[str, Callable[[Case], Launch]] = {
    "attention_forward": _attention_forward,
    "attention_backward_key_value": functools.partial(_attention_backward, which="key_value_config"),
    "attention_backward_query": functools.partial(_attention_backward, which="query_config"),
    "decode": _decode,
}
