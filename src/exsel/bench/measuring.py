"""Rounds of contenders: each runs once a round, in a new order, and is divided by its floor's time of that round."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exsel.machine import can_compile
from exsel.training.training_step import kept_for_backward

#: Rounds where none are asked for: as many as fit into the seconds, between these bounds.
FEWEST_ROUNDS, MOST_ROUNDS, SECONDS = 5, {"cpu": 20, "cuda": 50}, 60.0

Key = tuple[str, str]
Round = dict[Key, dict[str, float]]


class Refused(Exception):  # noqa: N818
    """A contender that cannot run a case, with its reason: a gap in the table."""


class Stop(Exception):  # noqa: N818
    """The user interrupted; ``rows`` hold what was measured of the case in hand."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.rows = rows


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

    def backward(self, output: Tensor) -> tuple[Tensor, ...]:
        """The gradients by ``inputs``; none where there is no backward."""
        return () if self.gradient is None else torch.autograd.grad(output, self.inputs, self.gradient)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to measure.

    Args:
        name: as the table shows it, unique within its group.
        group: the contenders that one picture shows.
        floor: ``(group, name)`` of what it is divided by.
        prepare: makes the work; may raise :class:`Refused`.
        details: what else its rows say.
    """

    name: str
    group: str
    floor: Key
    prepare: Callable[[], Work]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells it from the others of its case."""
        return self.group, self.name


class Clock:
    """Measures a piece of work."""

    def calibrate(self, work: Work) -> None:
        """Run a typical piece of work, to know how long it takes; nothing to know by default."""

    def time(self, work: Work) -> dict[str, float]:
        """Run it once, for one round; seconds by pass."""
        raise NotImplementedError


class CpuClock(Clock):
    """``perf_counter``; what takes less than ``least`` seconds is repeated, and its mean is taken."""

    def __init__(self, least: float = 0.01) -> None:
        self.least = least
        self.repeats = 1

    def calibrate(self, work: Work) -> None:
        """Choose how often to repeat."""
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
            gradients = work.backward(output)
            backward += time.perf_counter() - middle
            forward += middle - start
            del output, gradients
        forward, backward = forward / self.repeats, backward / self.repeats
        if work.gradient is None:
            return {work.name: forward}
        return {"forward": forward, "backward": backward, "both": forward + backward}


class CudaClock(Clock):
    """CUDA events around each pass, with the caches emptied before it.

    Emptying them takes the device some 0.3 ms, in which the host gets ahead of it as it does in a training step: what
    is measured is the device's time, not that of launching.
    """

    def __init__(self) -> None:
        self._cache = torch.empty(2**28, dtype=torch.int8, device="cuda")

    def time(self, work: Work) -> dict[str, float]:
        """See :class:`Clock`."""
        first = self._seconds(work.forward)
        if work.gradient is None:
            return {work.name: first}
        output = work.forward()
        backward = self._seconds(lambda: work.backward(output))
        return {"forward": first, "backward": backward, "both": self._seconds(lambda: work.backward(work.forward()))}

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


def check_compiler() -> None:
    """Raise :class:`Refused` where ``torch.compile`` cannot work."""
    if not can_compile():
        raise Refused("torch.compile needs a C++ compiler (g++ or clang++), and there is none")


def saved_bytes(work: Work) -> int | None:
    """Bytes of the distinct tensors that autograd keeps from forward to backward; ``None`` without a backward."""
    if work.gradient is None:
        return None
    with kept_for_backward() as kept:
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
    work.backward(work.forward())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before


def measure(
    contenders: Sequence[Contender],
    *,
    clock: Clock,
    device: torch.device,
    rounds: int | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the contenders of one case.

    Args:
        contenders: their floors among them, and in front.
        clock: what measures a pass.
        device: where the work is.
        rounds: how many; ``None``: by the time they take.
        say: is told what takes time now.

    Returns:
        A row a contender: ``contender``, ``group``, ``floor``, its details, ``rounds``, ``passes`` (by name:
        ``ms_median``, ``ratio_median``, ``ratio_quartiles``), ``saved_bytes``, ``peak_bytes``, and ``refused``: why
        there are no numbers, or ``None``.

    Raises:
        Stop: interrupted; complete rounds are kept.
    """
    works: dict[Key, Work] = {}
    facts: dict[Key, dict[str, Any]] = {}
    done: list[Round] = []
    try:
        for contender in contenders:
            is_compiled = "compiled" in (contender.group, contender.name.split()[0])
            say(f"  {'compiling' if is_compiled else 'preparing'} {contender.name} ({contender.group})")
            fact = facts[contender.key] = {"saved_bytes": None, "peak_bytes": None, "refused": None}
            try:
                if contender.floor not in works and contender.floor != contender.key:
                    raise Refused(f"its floor, {contender.floor[1]}, was not measured")
                work = contender.prepare()
                work.backward(work.forward())  # compiles
                fact |= {"saved_bytes": saved_bytes(work), "peak_bytes": peak_bytes(work, device)}
                if not works:
                    clock.calibrate(work)
                works[contender.key] = work
            except (Refused, torch.OutOfMemoryError) as error:
                reason = str(error) if isinstance(error, Refused) else "out of memory"
                facts[contender.key] = {"saved_bytes": None, "peak_bytes": None, "refused": reason}
        most = MOST_ROUNDS[device.type] if rounds is None else rounds
        say(f"  measuring, {most} rounds at most")
        _run_rounds(works, clock, most, rounds is None, done)
    except KeyboardInterrupt:
        raise Stop([_row(each, facts[each.key], done) for each in contenders] if done else []) from None
    return [_row(each, facts[each.key], done) for each in contenders]


def _run_rounds(works: Mapping[Key, Work], clock: Clock, most: int, may_be_fewer: bool, done: list[Round]) -> None:
    """Append rounds to ``done``, whole ones only."""
    order = list(works)
    # In a new order each: else the caches would always hold what the same contender left there.
    shuffle, start = random.Random(0).shuffle, time.perf_counter()
    while works and len(done) < most:
        is_late = time.perf_counter() - start > SECONDS
        if may_be_fewer and is_late and len(done) >= FEWEST_ROUNDS:
            break
        shuffle(order)
        done.append({key: clock.time(works[key]) for key in order})


def _row(contender: Contender, facts: Mapping[str, Any], rounds: Sequence[Round]) -> dict[str, Any]:
    measured = [each for each in rounds if contender.key in each]
    passes = {}
    for name in measured[0][contender.key] if measured else ():
        own = [each[contender.key][name] for each in measured]
        passes[name] = summarise_rounds(own, [each[contender.floor][name] for each in measured])
    return {
        "group": contender.group,
        "contender": contender.name,
        "floor": contender.floor[1],
        **contender.details,
        "rounds": len(measured),
        "passes": passes,
        **facts,
    }


def summarise_rounds(own: Sequence[float], floor: Sequence[float]) -> dict[str, Any]:
    """Median milliseconds, and median and quartiles of the ratios, each of one round: seconds in, one a round."""
    ratios = [one / other for one, other in zip(own, floor, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"ms_median": statistics.median(own) * 1e3, "ratio_median": middle, "ratio_quartiles": [low, high]}
