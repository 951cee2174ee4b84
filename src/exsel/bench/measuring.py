"""Rounds of contenders: each runs once a round, in a new order, and is divided by its floor's time of that round."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from exsel.bench.timing import Clock, Work, peak_bytes, saved_bytes

#: Rounds where none are asked for: as many as fit into the seconds, between these bounds.
FEWEST_ROUNDS, MOST_ROUNDS, SECONDS = 5, {"cpu": 20, "cuda": 50}, 60.0


class Refused(Exception):  # noqa: N818
    """A contender that cannot run a case, with its reason: a gap in the table."""


class Stop(Exception):  # noqa: N818
    """The user wants no more; ``rows`` hold what was measured of the case in hand."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.rows = rows


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
    floor: tuple[str, str]
    prepare: Callable[[], Work]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others of its case."""
        return self.group, self.name


class Watcher(Protocol):
    """Someone to tell what is going on."""

    def doing(self, what: str) -> None:
        """What takes time now, beside the rounds."""
        ...

    def measured(self, rounds: int, of: int) -> None:
        """So many rounds are done."""
        ...


Round = dict[tuple[str, str], dict[str, float]]


def measure(
    contenders: Sequence[Contender],
    *,
    clock: Clock,
    device: torch.device,
    rounds: int | None,
    watcher: Watcher,
) -> list[dict[str, Any]]:
    """Measure the contenders of one case.

    Args:
        contenders: their floors among them, and in front.
        clock: what measures a pass.
        device: where the work is.
        rounds: how many; ``None``: by the time they take.
        watcher: is told what happens.

    Returns:
        A row a contender: ``contender``, ``group``, ``floor``, its details, ``rounds``, ``passes`` (by name:
        ``ms_median``, ``ratio_median``, ``ratio_quartiles``), ``saved_bytes``, ``peak_bytes``, and ``refused``: why
        there are no numbers, or ``None``.

    Raises:
        Stop: interrupted; complete rounds are kept.
    """
    works: dict[tuple[str, str], Work] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    done: list[Round] = []
    try:
        for contender in contenders:
            watcher.doing(_preparation(contender))
            facts[contender.key] = {"saved_bytes": None, "peak_bytes": None, "refused": None}
            try:
                if contender.floor not in works and contender.floor != contender.key:
                    raise Refused(f"its floor, {contender.floor[1]}, was not measured")
                work = contender.prepare()
                work.run()  # compiles
                facts[contender.key]["saved_bytes"] = saved_bytes(work)
                facts[contender.key]["peak_bytes"] = peak_bytes(work, device)
                if not works:
                    clock.calibrate(work)
                works[contender.key] = work
            except Refused as refusal:
                facts[contender.key]["refused"] = str(refusal)
            except torch.OutOfMemoryError:
                facts[contender.key] = {"saved_bytes": None, "peak_bytes": None, "refused": "out of memory"}
        _run_rounds(works, clock, _Limit(rounds, device), watcher, done)
    except KeyboardInterrupt:
        raise Stop([_row(each, facts[each.key], done) for each in contenders] if done else []) from None
    return [_row(each, facts[each.key], done) for each in contenders]


def _preparation(contender: Contender) -> str:
    verb = "compiling" if "compiled" in (contender.group, contender.name.split()[0]) else "preparing"
    return f"{verb} {contender.name} ({contender.group})"


class _Limit:
    """How many rounds there will be."""

    def __init__(self, rounds: int | None, device: torch.device) -> None:
        self._fixed = rounds
        self.most = MOST_ROUNDS[device.type] if rounds is None else rounds
        self._start = time.perf_counter()

    def reached(self, done: int) -> bool:
        late = time.perf_counter() - self._start > SECONDS
        return done >= self.most or (self._fixed is None and late and done >= FEWEST_ROUNDS)


def _run_rounds(
    works: Mapping[tuple[str, str], Work], clock: Clock, limit: _Limit, watcher: Watcher, done: list[Round]
) -> None:
    """Append rounds to ``done``, whole ones only."""
    order = list(works)
    shuffle = random.Random(0).shuffle  # nobody always follows the same one, whose leavings are in the caches
    while works and not limit.reached(len(done)):
        shuffle(order)
        done.append({key: clock.time(works[key]) for key in order})
        watcher.measured(len(done), limit.most)


def _row(contender: Contender, facts: Mapping[str, Any], rounds: Sequence[Round]) -> dict[str, Any]:
    measured = [each for each in rounds if contender.key in each]
    passes = {}
    for name in measured[0][contender.key] if measured else ():
        own = [each[contender.key][name] for each in measured]
        floor = [each[contender.floor][name] for each in measured]
        passes[name] = summarise(own, floor)
    return {
        "group": contender.group,
        "contender": contender.name,
        "floor": contender.floor[1],
        **contender.details,
        "rounds": len(measured),
        "passes": passes,
        **facts,
    }


def summarise(own: Sequence[float], floor: Sequence[float]) -> dict[str, Any]:
    """Median milliseconds, and median and quartiles of the ratios, each of one round: seconds in, one a round."""
    ratios = [one / other for one, other in zip(own, floor, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "ms_median": statistics.median(own) * 1e3,
        "ratio_median": quartiles[1],
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }
