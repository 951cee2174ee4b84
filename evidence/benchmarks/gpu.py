"""What a machine with one GPU is to measure, most wanted first, in as many calls as it takes.

    python -m evidence.benchmarks gpu [--minutes 9] [--resume] [--out FILE]
    python -m evidence.benchmarks gpu --rehearse --out FILE

Each item is kept when it is done, and one that fails is kept with its error; ``--resume`` goes on with the others. An
item that failed is tried again when the source code has changed. ``--rehearse`` does the same items on the CPU, each
as small as it can be. Nothing is fetched from a network, and nothing is needed beside torch, triton, transformers and
what these install.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evidence.benchmarks.gpu_training import trained_on_source
from evidence.benchmarks.long_contenders import packed_contenders, window_contenders
from exsel.bench.cases import DTYPES, SHAPES, Case, Shape
from exsel.bench.session import Plan, PlannedCase, contenders_of
from exsel.bench.session import run as measure
from exsel.cli.display import activity
from exsel.cli.flags import real
from exsel.errors import ExselError
from exsel.files import read_json, write_json
from exsel.machine import describe_machine, git_revision, resolve_device
from exsel.variants import VARIANTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "evidence" / "benchmarks" / "results" / "gpu"
FORMAT = 1
DONE, FAILED, STOPPED = "done", "failed", "stopped"

#: Of attention and decode. The other compiled form would cost a compilation more for each length.
CONTENDERS = ("eager normalize", "compiled normalize", "exsel sdpa")
ROUNDS = 20
SIZE = "124m"
SEEDS = (0, 1)
#: Of the training where its step was not measured; the least that a run takes, and what of it are not steps.
_TOKENS_PER_SECOND, _SECONDS_OF_RUN, _SECONDS_BESIDE = 150_000, 40, 20


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to measure.

    Args:
        subject: which of :data:`SUBJECTS`.
        shape: of :data:`exsel.bench.cases.SHAPES`.
        tokens, batch: of the case.
        variant, seed: of a training.
        seconds: what it takes on an H100, by estimate, most of it compiling; it begins only if so much time is left.
    """

    subject: str
    shape: str = ""
    tokens: int = 0
    batch: int = 0
    variant: str = ""
    seed: int = 0
    seconds: float

    @property
    def name(self) -> str:
        """What it is called in the file."""
        if self.variant:
            return f"{self.subject} {self.variant}, seed {self.seed}"
        return f"{self.subject} {self.shape}, {self.batch} × {self.tokens} tokens" if self.shape else self.subject


def _attention(shape: str, *lengths: int) -> list[Item]:
    return [Item(subject="attention", shape=shape, tokens=n, batch=max(1, 2**16 // n), seconds=30) for n in lengths]


def _decode(shape: str, *lengths: int) -> list[Item]:
    return [
        Item(subject="decode", shape=shape, tokens=tokens, batch=batch, seconds=15)
        for tokens in lengths
        for batch in (1, 8)
    ]


#: First what the goals ask for, then the rest of each table.
ITEMS: Sequence[Item] = (
    Item(subject="tests", seconds=60),
    *_attention("1.4b", 2048, 8192),
    *_attention("llama", 2048, 8192),
    Item(subject="step", shape="1.4b", tokens=2048, batch=4, seconds=120),
    *_decode("1.4b", 2048, 8192),
    Item(subject="window", shape="llama", tokens=32768, batch=1, seconds=30),
    Item(subject="packed", shape="llama", tokens=512, batch=64, seconds=20),
    Item(subject="block", shape="1.4b", tokens=2048, batch=32, seconds=60),
    *_attention("0.7b", 2048, 8192),
    *_attention("1.4b", 512, 1024, 4096, 16384, 32768),
    *_attention("llama", 512, 1024, 4096, 16384, 32768),
    Item(subject="step", shape=SIZE, tokens=1024, batch=32, seconds=60),
    *_decode("llama", 2048, 8192, 32768),
    *_decode("1.4b", 32768),
    *_attention("0.7b", 512, 1024, 4096, 16384, 32768),
    *(
        Item(subject="training", variant=variant, seed=seed, seconds=_SECONDS_OF_RUN)
        for seed in SEEDS
        for variant in VARIANTS
    ),
)


def rehearsal(items: Sequence[Item]) -> list[Item]:
    """The same items as small as they can be; those that become the same stand once."""
    small = {"block": "tiny", "step": "tiny"}
    return list(
        dict.fromkeys(
            replace(item, shape=small.get(item.subject, "2x1x16"), tokens=32, batch=2, seconds=0)
            if item.shape
            else replace(item, seconds=0)
            for item in items
        )
    )


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of the kit: where it measures, until when, and what there is already."""

    device: str
    ends: float
    kept: dict[str, Any]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    @property
    def is_rehearsal(self) -> bool:
        """On the CPU, small."""
        return self.device == "cpu"


def bench(session: Session, item: Item) -> dict[str, Any]:
    """The rows of one case of ``exsel bench``, or of a long one."""
    heads = [int(number) for number in re.findall(r"\d+", item.shape)] if "x" in item.shape else None
    shape = SHAPES[item.shape] if heads is None else Shape(item.shape, *heads)
    dtype = session.kept["dtype"]
    case = Case(
        shape=shape, tokens=item.tokens, batch=item.batch, device=torch.device(session.device), dtype=DTYPES[dtype]
    )
    make: Callable[..., Any] = {"window": window_contenders, "packed": packed_contenders}.get(
        item.subject, contenders_of(item.subject, CONTENDERS, ways=("compiled",))
    )
    plan = Plan(
        subjects=(item.subject,), device=session.device, dtype=dtype, rounds=2 if session.is_rehearsal else ROUNDS
    )
    with activity() as say:
        record = measure(plan, [PlannedCase(item.subject, case, make)], command="", say=say, on_case=lambda _: None)
    if record["partial"]:
        raise KeyboardInterrupt
    return {"rows": record["rows"]}


def run_tests(session: Session, item: Item) -> dict[str, Any]:
    """The tests that need a GPU; in a rehearsal they are only collected."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    how = ["--collect-only"] if session.is_rehearsal else []
    # Without addopts, whose --strict-config wants pytest-timeout, which may be absent.
    options = ["-q", "-o", "addopts=", "-W", "ignore::pytest.PytestConfigWarning", "-m", "gpu"]
    command = [sys.executable, "-m", "pytest", *options, *how, *map(str, files)]
    limit = max(1.0, session.left)
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    lines = finished.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if finished.returncode:
        raise RuntimeError("\n".join([*lines[-60:], finished.stderr[-2000:], *failed, *lines[-1:]]))
    return {"result": {"summary": lines[-1]}}


def _train_variant(session: Session, item: Item) -> dict[str, Any]:
    """One of the trainings. The first of them divides the time that is left among all."""
    if "training" not in session.kept:
        session.kept["training"] = _SMALL_TRAINING if session.is_rehearsal else _training(session)
    is_compiled = not session.is_rehearsal
    arguments = session.kept["training"]
    return {
        "result": trained_on_source(
            item.variant, seed=item.seed, device=session.device, is_compiled=is_compiled, **arguments
        )
    }


_SMALL_TRAINING = {"size": "tiny", "steps": 2, "batch": 1, "seq_len": 32}


def _training(session: Session) -> dict[str, Any]:
    """As many steps as the time allows, by the step that was measured, and time to compile and validate."""
    item = next(item for item in ITEMS if (item.subject, item.shape) == ("step", SIZE))
    measured = [
        row["passes"]["step"]["ms_median"] / 1e3
        for row in session.kept["items"].get(item.name, {}).get("rows", [])
        if row["passes"]
    ]
    a_step = max(measured, default=item.batch * item.tokens / _TOKENS_PER_SECOND)
    runs = len([item for item in ITEMS if item.subject == "training"])
    seconds = max(_SECONDS_OF_RUN, session.left / runs) - _SECONDS_BESIDE
    return {"size": SIZE, "steps": int(0.8 * seconds / a_step), "batch": item.batch, "seq_len": item.tokens}


SUBJECTS: dict[str, Callable[[Session, Item], dict[str, Any]]] = {
    **dict.fromkeys(("attention", "decode", "block", "step", "window", "packed"), bench),
    "tests": run_tests,
    "training": _train_variant,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--minutes", type=real, default=9.0, metavar="X", help="after which it stops (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out")
    parser.add_argument("--rehearse", action="store_true", help="every item as small as it can be, on the CPU")
    text = "the results (evidence/benchmarks/results/gpu/, by the name of the device)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)


def bench_record(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of the kit has, in the form of ``exsel bench``'s records."""
    entries = list(kept["items"].values())
    return {
        **{key: kept[key] for key in ("device", "dtype", "machine")},
        "command": "python -m evidence.benchmarks gpu",
        "git_revision": entries[-1]["git_revision"] if entries else None,
        "rows": [row for entry in entries for row in entry.get("rows", [])],
    }


def training_results(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trainings that are done."""
    entries = [entry for name, entry in kept["items"].items() if name.startswith("training ")]
    return [entry["result"] for entry in entries if entry["outcome"] == DONE]


def run(arguments: argparse.Namespace) -> int:
    """Do the items in their order, and keep each."""
    device = "cpu" if arguments.rehearse else resolve_device("cuda")
    if arguments.rehearse and arguments.out is None:
        raise ExselError("--rehearse: say with --out where its numbers go, which are worth nothing")
    machine = describe_machine(device)
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    out: Path = arguments.out or RESULTS / f"{name}.json"
    kept = _open(out, machine, device, resume=arguments.resume)
    session = Session(device=device, ends=time.monotonic() + 60 * arguments.minutes, kept=kept)
    items = rehearsal(ITEMS) if arguments.rehearse else ITEMS
    source = source_hash()
    with _alarm(60 * arguments.minutes):
        for item in items:
            entry = kept["items"].get(item.name, {})
            if entry.get("outcome") == DONE or (entry.get("outcome") == FAILED and entry["source"] == source):
                continue
            if item.seconds > session.left:
                print(f"{item.name}: wants {item.seconds:.0f} s, {session.left:.0f} s are left", flush=True)
                continue
            entry = kept["items"][item.name] = {"source": source, **_do(session, item)}
            write_json(out, kept)
            print(f"{item.name}: {entry['outcome']} in {entry['seconds']:.0f} s {last_line_of(entry)}", flush=True)
            if entry["outcome"] == STOPPED:
                break
            if entry["outcome"] == FAILED and not _is_well(device):
                # After some errors a process can use the GPU no more: another goes on.
                again = ["gpu", "--resume", "--out", str(out), "--minutes", str(session.left / 60)]
                os.execv(sys.executable, [sys.executable, "-m", "evidence.benchmarks", *again])
    outcomes = [kept["items"].get(item.name, {}).get("outcome") for item in items]
    print(f"{outcomes.count(DONE)} of {len(items)} items are done, {outcomes.count(FAILED)} failed: {out}")
    return 0 if outcomes.count(DONE) == len(items) else 1


def _open(out: Path, machine: Mapping[str, Any], device: str, *, resume: bool) -> dict[str, Any]:
    """What the file holds, or an empty one."""
    if out.exists() and not resume:
        raise ExselError(f"{out} holds results already: go on with --resume, or move it away")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        dtype = "float32" if device == "cpu" else "bfloat16"
        return {"format": FORMAT, "device": device, "dtype": dtype, "machine": dict(machine), "items": {}}
    kept: dict[str, Any] = read_json(out)
    for key in ("device", "torch", "triton"):
        before, now = kept["machine"].get(key), machine.get(key)
        if before != now:
            raise ExselError(f"{out} was measured with {key} {before}, and this is {now}: move it away")
    return kept


def _do(session: Session, item: Item) -> dict[str, Any]:
    """Do an item; its entry, whatever happens."""
    start, made = time.monotonic(), dict[str, Any]()
    outcome, error = DONE, None
    try:
        made = SUBJECTS[item.subject](session, item)
    except KeyboardInterrupt:
        outcome = STOPPED
    except (Exception, SystemExit) as failure:
        outcome, error = FAILED, "".join(traceback.format_exception(failure))[-6000:]
    return {
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 1),
        "estimate": item.seconds,
        "git_revision": git_revision(),
        "error": error,
        **made,
    }


def last_line_of(entry: Mapping[str, Any]) -> str:
    """The last line of an entry's error, which names it."""
    return (entry["error"] or "").strip().rpartition("\n")[2]


def _is_well(device: str) -> bool:
    """Whether the process can still compute there."""
    try:
        return float(torch.ones(1, device=device).sum()) == 1
    except RuntimeError:
        return False


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt the process after so many seconds as Ctrl-C would: a measurement stops, and a training saves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process would ignore it
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def source_hash() -> str:
    """Of the code that is measured and that measures, which a copy without its repository has too."""
    digest = hashlib.sha256()
    for folder in ("src", "evidence"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp"):
                digest.update(path.read_bytes())
    return digest.hexdigest()
