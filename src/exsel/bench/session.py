"""What ``exsel bench`` does: the cases of each subject, one after the other, into one record."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from exsel.bench import attention, block, decode, step
from exsel.bench.cases import (
    DEFAULT_SHAPES,
    DTYPES,
    SHAPES,
    Case,
    Shape,
    batch_of,
    check_bytes,
    check_memory,
)
from exsel.bench.measuring import Contender, Stop, Watcher, measure
from exsel.bench.timing import Clock, make_clock
from exsel.bench.variants import check_sizes, parameter_count
from exsel.errors import ExselError
from exsel.machine import describe_machine, git_revision

SUBJECTS = ("attention", "block", "decode")
#: Of ``bench.json``.
FORMAT = 1

_TOKENS = {
    "cpu": {
        "attention": (256, 512, 1024, 2048, 4096, 8192),
        "block": (512, 2048),
        "decode": (512, 2048, 8192, 32768),
    },
    "cuda": {
        "attention": (512, 1024, 2048, 4096, 8192, 16384, 32768),
        "block": (2048,),
        "decode": (512, 2048, 8192, 32768),
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


class Display(Watcher, Protocol):
    """Someone to tell what is going on, over all cases."""

    def case(self, title: str, number: int, of: int) -> None:
        """A case begins."""
        ...


@dataclass(frozen=True)
class _Job:
    subject: str
    case: Case


def jobs(plan: Plan) -> list[_Job]:
    """Every case in order, checked.

    Raises:
        ExselError: a shape without a block of that size, or a case that does not fit into the memory.
    """
    device, dtype = torch.device(plan.device), DTYPES[plan.dtype]
    tokens_in_all = _TOKENS_IN_ALL[plan.device]
    planned: list[_Job] = []

    def add(subject: str, shape: Shape, tokens: int, batch: int) -> None:
        planned.append(_Job(subject, Case(shape=shape, tokens=tokens, batch=batch, device=device, dtype=dtype)))

    for subject in plan.subjects:
        all_tokens = plan.seq_lens or _TOKENS[plan.device][subject]
        shapes = plan.shapes or tuple(SHAPES[name] for name in DEFAULT_SHAPES)
        if subject == "block":
            shapes = plan.shapes or tuple(SHAPES[name] for name in _BLOCK_SIZES[plan.device])
            check_sizes([shape.name for shape in shapes], "--shapes")
        for shape in shapes:
            for tokens in all_tokens:
                for batch in decode.BATCHES if subject == "decode" else (batch_of(tokens, tokens_in_all),):
                    add(subject, shape, tokens, batch)
        if subject == "block":
            size, tokens, batch = step.DEFAULTS[plan.device]
            size = plan.model or size
            check_sizes([size], "--model")
            check_bytes(parameter_count(size) * step.BYTES_PER_PARAMETER, device, f"--model {size}: a training step")
            add("step", SHAPES[size], tokens, batch)
    check_memory([job.case for job in planned])
    return planned


def contenders_of(job: _Job, clock: Clock, wanted: Collection[str]) -> list[Contender]:
    """What is measured in a case."""
    if job.subject == "attention":
        return attention.contenders(job.case, clock, wanted)
    if job.subject == "decode":
        return decode.contenders(job.case, clock, wanted)
    return block.contenders(job.case) if job.subject == "block" else step.contenders(job.case)


def run(
    plan: Plan,
    planned: Sequence[_Job],
    *,
    command: str,
    display: Display,
    on_case: Callable[[dict[str, Any]], None],
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Measure everything; an interruption keeps what there is.

    Args:
        plan: what was asked for.
        planned: :func:`jobs` of it.
        command: the command line, for the record.
        display: is told what happens.
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
    for number, job in enumerate(planned):
        display.case(f"{job.subject} {job.case}", number, len(planned))
        torch.compiler.reset()  # what was compiled for the last case would count against the limit of this one
        gc.collect()
        try:
            measured = measure(
                contenders_of(job, clock, plan.contenders),
                clock=clock,
                device=job.case.device,
                rounds=plan.rounds,
                watcher=display,
            )
        except Stop as stop:
            rows.extend(_describe(job, row) for row in stop.rows)
            on_case(record)
            return record
        except KeyboardInterrupt:
            on_case(record)
            return record
        except torch.OutOfMemoryError:
            measured = [_out_of_memory(job)]
        rows.extend(_describe(job, row) for row in measured)
        record["partial"] = number + 1 < len(planned)
        on_case(record)
    return record


def _out_of_memory(job: _Job) -> dict[str, Any]:
    """The row of a case whose tensors alone do not fit."""
    group = f"batch {job.case.batch}" if job.subject == "decode" else attention.STOCK[0]
    return {
        "group": group,
        "contender": attention.STOCK[1],
        "floor": attention.STOCK[1],
        "rounds": 0,
        "passes": {},
        "saved_bytes": None,
        "peak_bytes": None,
        "refused": "out of memory",
    }


def _describe(job: _Job, row: dict[str, Any]) -> dict[str, Any]:
    shape = asdict(job.case.shape)
    return {
        "subject": job.subject,
        "shape": shape.pop("name"),
        **shape,
        "tokens": job.case.tokens,
        "batch": job.case.batch,
        **row,
    }


def check_names(names: Collection[str], known: Collection[str], what: str) -> None:
    """Check that all are known.

    Raises:
        ExselError: one is not.
    """
    for name in names:
        if name not in known:
            raise ExselError(f"{what}: no {name!r}: choose from {', '.join(known)}")
