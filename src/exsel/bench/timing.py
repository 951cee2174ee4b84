"""How long one pass takes, and how much memory it needs."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is timed: a call, and its backward where it has a gradient.

    Args:
        forward: the call.
        inputs: what it is differentiated by.
        gradient: of the loss by what the call returns; ``None``: there is no backward, and the call is all.
        name: of the only pass where there is no backward.
    """

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...] = ()
    gradient: Tensor | None = None
    name: str = "forward"

    @property
    def passes(self) -> tuple[str, ...]:
        """The names of what is timed."""
        return (self.name,) if self.gradient is None else ("forward", "backward", "both")

    def backward(self, output: Tensor) -> tuple[Tensor, ...]:
        """The gradients by ``inputs``."""
        return torch.autograd.grad(output, self.inputs, self.gradient)

    def run(self) -> Tensor:
        """All of it once; returns what the call returned."""
        output = self.forward()
        if self.gradient is not None:
            self.backward(output)
        return output.detach()


class Clock(Protocol):
    """Seconds of each pass of a piece of work, for one round."""

    def time(self, work: Work) -> dict[str, float]:
        """Run it and measure."""
        ...

    def calibrate(self, work: Work) -> None:
        """Run a typical piece of work, to know how long it takes."""
        ...


class CpuClock:
    """``perf_counter``; what takes less than ``least`` seconds is repeated, and its mean is taken."""

    def __init__(self, least: float = 0.01) -> None:
        self.least = least
        self.repeats = 1

    def calibrate(self, work: Work) -> None:
        """See :class:`Clock`."""
        self.repeats = 1
        seconds = max(self.time(work).values())
        self.repeats = min(200, max(1, math.ceil(self.least / max(seconds, 1e-7))))

    def time(self, work: Work) -> dict[str, float]:
        """See :class:`Clock`."""
        forward = backward = 0.0
        for _ in range(self.repeats):
            start = time.perf_counter()
            output = work.forward()
            middle = time.perf_counter()
            forward += middle - start
            if work.gradient is not None:
                gradients = work.backward(output)
                backward += time.perf_counter() - middle
                del gradients
            del output
        forward, backward = forward / self.repeats, backward / self.repeats
        if work.gradient is None:
            return {work.name: forward}
        return {"forward": forward, "backward": backward, "both": forward + backward}


class CudaClock:
    """CUDA events around each pass, with the caches emptied before it.

    Emptying them takes the device some 0.3 ms, in which the host gets ahead of it as it does in a training step: what
    is measured is the device's time, not that of launching.
    """

    def __init__(self) -> None:
        self._cache = torch.empty(2**28, dtype=torch.int8, device="cuda")

    def calibrate(self, work: Work) -> None:
        """Nothing to know: events resolve half a microsecond."""

    def time(self, work: Work) -> dict[str, float]:
        """See :class:`Clock`."""
        if work.gradient is None:
            return {work.name: self._seconds(work.forward)}
        seconds = {"forward": self._seconds(work.forward)}
        seconds["backward"] = self._seconds(functools.partial(work.backward, work.forward()))
        seconds["both"] = self._seconds(lambda: work.backward(work.forward()))
        return seconds

    def _seconds(self, call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(4):
            self._cache.zero_()
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        del result
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3


def make_clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


def saved_bytes(work: Work) -> int | None:
    """Bytes of the distinct tensors that autograd keeps from forward to backward; ``None`` without a backward."""
    if work.gradient is None:
        return None
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address must not be used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = work.forward()
    work.backward(output)
    return sum(kept.values())


def peak_bytes(work: Work, device: torch.device) -> int | None:
    """Bytes that all passes together need above what is there before; ``None`` where nothing counts them."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before
