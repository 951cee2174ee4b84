"""What ``exsel bench`` does: the cases of each subject, one after the other, into one record."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from exsel.bench import attention
from exsel.bench.cases import (
    DEFAULT_SHAPES,
    DTYPES,
    GROUPS,
    SHAPES,
    Case,
    Shape,
    batch_of,
    check_bytes,
    check_memory,
    check_sizes,
)
from exsel.bench.measuring import SECONDS, Clock, Contender, Stop, make_clock, measure
from exsel.machine import describe_machine, git_revision
from exsel.report.formatting import time_left

SUBJECTS = ("attention", "block", "decode")
#: Of ``bench.json``.
FORMAT = 1

_DECODE_TOKENS = (512, 2048, 8192, 32768)
_TOKENS = {
    "cpu": {"attention": (256, 512, 1024, 2048, 4096, 8192), "block": (512, 2048), "decode": _DECODE_TOKENS},
    "cuda": {
        "attention": (512, 1024, 2048, 4096, 8192, 16384, 32768),
        "block": (2048,),
        "decode": _DECODE_TOKENS,
    },
}
_TOKENS_IN_ALL = {"cpu": 4096, "cuda": 65536}
_BLOCK_SIZES = {"cpu": ("124m",), "cuda": ("0.7b", "1.4b", "2.7b")}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line asked for; ``None``: what suits the device."""

    subjects: tuple[str, ...]
    device: str
    dtype: str
    shapes: tuple[Shape, ...] | None = None
    seq_lens: tuple[int, ...] | None = None
    contenders: tuple[str, ...] = attention.DEFAULT_NAMES
    model: str | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class PlannedCase:
    """A case of a subject, and what makes its contenders."""

    subject: str
    case: Case
    contenders: Callable[[Case, Clock], Sequence[Contender]]


def jobs(plan: Plan) -> list[PlannedCase]:
    """Every case in order, checked."""
    device, dtype = torch.device(plan.device), DTYPES[plan.dtype]
    planned: list[PlannedCase] = []

    def add(subject: str, shape: Shape, tokens: int, batch: int) -> None:
        case = Case(shape=shape, tokens=tokens, batch=batch, device=device, dtype=dtype)
        planned.append(PlannedCase(subject, case, contenders_of(subject, plan.contenders)))

    for subject in plan.subjects:
        names = _BLOCK_SIZES[plan.device] if subject == "block" else DEFAULT_SHAPES
        shapes = plan.shapes or tuple(SHAPES[name] for name in names)
        if subject == "block":
            check_sizes([shape.name for shape in shapes], "--shapes")
        for shape in shapes:
            for tokens in plan.seq_lens or _TOKENS[plan.device][subject]:
                batches = (batch_of(tokens, _TOKENS_IN_ALL[plan.device]),)
                for batch in attention.BATCHES if subject == "decode" else batches:
                    add(subject, shape, tokens, batch)
        if subject == "block":
            from exsel.bench import model_contenders  # imports transformers, which the other subjects do not need

            size, in_all = model_contenders.STEPS[plan.device]
            size = plan.model or size
            check_sizes([size], "--model")
            tokens = model_contenders.context_length(size)
            needed = model_contenders.parameter_count(size) * model_contenders.BYTES_PER_PARAMETER
            check_bytes(needed, device, f"--model {size}: a training step")
            add("step", SHAPES[size], tokens, batch_of(tokens, in_all))
    check_memory([job.case for job in planned])
    return planned


def run(
    plan: Plan,
    planned: Sequence[PlannedCase],
    *,
    command: str,
    say: Callable[[str], None],
    on_case: Callable[[dict[str, Any]], None],
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Measure everything; an interruption keeps what there is.

    Args:
        plan, planned: what was asked for, and :func:`jobs` of it.
        command: the command line, for the record.
        say: is told what happens.
        on_case: is given the record after each case.
        clock: the device's own where there is none.

    Returns:
        ``bench.json``: ``rows`` (see :func:`exsel.bench.measuring.measure`; each also says its ``subject``, ``shape``
        with its heads, ``tokens`` and ``batch``), ``partial`` (whether cases or rounds are missing), the machine, the
        revision, the command.
    """
    clock = clock or make_clock(torch.device(plan.device))
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "device": plan.device,
        "dtype": plan.dtype,
        "partial": True,
        "machine": describe_machine(plan.device),
        "git_revision": git_revision(),
        "rows": rows,
    }
    torch.manual_seed(0)
    start = time.perf_counter()
    for number, job in enumerate(planned):
        if number:
            left = f"; {time_left((time.perf_counter() - start) / number * (len(planned) - number))}"
        else:
            left = "" if plan.rounds else f"; each has rounds for {SECONDS:g} s at most"
        say(f"{job.subject} {job.case} (case {number + 1} of {len(planned)}{left})")
        torch.compiler.reset()  # what was compiled for the last case would count against the limit of this one
        gc.collect()
        is_interrupted = False
        try:
            chosen, device = job.contenders(job.case, clock), job.case.device
            measured = measure(chosen, clock=clock, device=device, rounds=plan.rounds, say=say)
        except (Stop, KeyboardInterrupt) as interruption:
            measured, is_interrupted = getattr(interruption, "rows", []), True
        except torch.OutOfMemoryError:
            measured = [_out_of_memory(job)]
        shape = asdict(job.case.shape)
        place = {"subject": job.subject, "shape": shape.pop("name"), **shape}
        place |= {"tokens": job.case.tokens, "batch": job.case.batch}
        rows += [{**place, **row} for row in measured]
        record["partial"] = is_interrupted or number + 1 < len(planned)
        on_case(record)
        if is_interrupted:
            break
    return record


def contenders_of(
    subject: str, wanted: Collection[str], ways: Collection[str] = GROUPS
) -> Callable[[Case, Clock], Sequence[Contender]]:
    """What makes the contenders of a case: of attention and decode those wanted, of block and step in these ways."""
    if subject in ("attention", "decode"):
        return lambda case, clock: attention.contenders(case, clock, wanted, decode=subject == "decode")
    from exsel.bench import model_contenders

    make = model_contenders.block_contenders if subject == "block" else model_contenders.step_contenders
    return lambda case, _: make(case, ways)


def _out_of_memory(job: PlannedCase) -> dict[str, Any]:
    """The row of a case whose tensors alone do not fit."""
    return {
        "group": f"batch {job.case.batch}" if job.subject == "decode" else attention.STOCK[0],
        "contender": attention.STOCK[1],
        "floor": attention.STOCK[1],
        "rounds": 0,
        "passes": {},
        "saved_bytes": None,
        "peak_bytes": None,
        "refused": "out of memory",
    }
