"""``exsel bench``: what the mechanisms cost on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from exsel.cli.arguments import check_folder

if TYPE_CHECKING:
    from exsel.bench.session import Plan

#: The files of an output folder beside the pictures.
RESULTS = "bench.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "subjects",
        nargs="*",
        metavar="SUBJECT",
        help="attention (forward and backward), block (one transformer block, and a whole training step) or decode "
        "(one token on a cache); default: attention",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument(
        "--shapes",
        metavar="NAME[,…]",
        help="tiny, 124m, 0.7b, 1.4b, 2.7b, llama, or heads x key/value heads x head dimension such as 24x8x128 "
        "(124m,0.7b,1.4b,llama; by device for block)",
    )
    parser.add_argument("--tokens", metavar="N[,…]", help="lengths of sequences, of caches for decode (by device)")
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16 or float16 (auto: bfloat16 on cuda, float32 on cpu)"
    )
    parser.add_argument(
        "--contenders",
        metavar="NAME[,…]",
        help="of attention and decode, beside stock: eager normalize, compiled normalize, compiled dot, exsel auto, "
        "exsel reference, exsel sdpa, exsel triton (all but the reference)",
    )
    parser.add_argument("--model", metavar="NAME", help="the size whose training step block times (by device)")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="of every contender in turn (as a minute a case allows, at least 5)"
    )
    parser.add_argument(
        "--tune",
        type=Path,
        metavar="FILE",
        help="instead: search the Triton kernels' configurations for this GPU and write them there",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs", "bench"),
        metavar="DIR",
        help="where bench.json and the pictures go (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    parser.add_argument("--json", action="store_true", help="print bench.json instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Check, measure, show."""
    from exsel.errors import require_all

    require_all("train")
    if arguments.tune is not None:
        return _tune(arguments)
    _check_output(arguments.out, arguments.overwrite)
    plan = _plan(arguments)

    import json
    import sys
    from typing import Any

    from exsel.bench.picture import write_pictures
    from exsel.bench.session import jobs
    from exsel.bench.session import run as measure
    from exsel.bench.table import HEADINGS, gaps, table_rows
    from exsel.cli.arguments import command_line
    from exsel.cli.bench_display import make_display
    from exsel.cli.display import print_table
    from exsel.files import write_json

    folder: Path = arguments.out
    planned = jobs(plan)
    folder.mkdir(parents=True, exist_ok=True)

    def keep(record: dict[str, Any]) -> None:
        write_json(folder / RESULTS, record)

    with make_display() as display:
        record = measure(plan, planned, command=command_line(arguments.given), display=display, on_case=keep)
    pictures = write_pictures(record["rows"], folder)
    if arguments.json:
        print(json.dumps(record, indent=2, ensure_ascii=False), flush=True)
    else:
        if record["rows"]:
            print_table(table_rows(record["rows"]), HEADINGS)
            print("\nRatios to stock (block: to the baseline of its group): medians over rounds, and quartiles")
        for gap in gaps(record["rows"]):
            print(gap)
        print(f"\nnumbers: {folder / RESULTS}")
        for picture in pictures:
            print(f"picture: {picture}", flush=True)
    if record["partial"]:
        print(f"exsel: interrupted: what was measured is in {folder / RESULTS}, marked partial", file=sys.stderr)
        return 130
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    """What the flags say.

    Raises:
        ExselError: something that is not known, not there or not a number.
    """
    from exsel.bench.attention import DEFAULT_NAMES, NAMES
    from exsel.bench.cases import DTYPES, parse_shapes, parse_tokens
    from exsel.bench.session import SUBJECTS, Plan, check_names
    from exsel.errors import ExselError
    from exsel.training.environment import resolve_device

    subjects = tuple(dict.fromkeys(arguments.subjects)) or SUBJECTS[:1]
    check_names(subjects, SUBJECTS, "exsel bench")
    if arguments.device == "mps":
        raise ExselError("--device mps: choose auto, cpu or cuda")
    device = resolve_device(arguments.device)
    if device == "mps":  # which auto found
        device = "cpu"
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    check_names([dtype], DTYPES, "--dtype")
    names = DEFAULT_NAMES
    if arguments.contenders is not None:
        names = tuple(name.strip() for name in arguments.contenders.split(","))
        check_names(names, NAMES, "--contenders")
    if arguments.rounds is not None and arguments.rounds < 1:
        raise ExselError(f"--rounds must be at least 1, got {arguments.rounds}")
    return Plan(
        subjects=subjects,
        device=device,
        dtype=dtype,
        shapes=None if arguments.shapes is None else parse_shapes(arguments.shapes),
        tokens=None if arguments.tokens is None else parse_tokens(arguments.tokens),
        contenders=names,
        model=arguments.model,
        rounds=arguments.rounds,
    )


def _check_output(folder: Path, overwrite: bool) -> None:
    from exsel.errors import ExselError

    check_folder(folder)
    if (folder / RESULTS).exists() and not overwrite:
        raise ExselError(f"--out {folder} holds results: choose another folder or add --overwrite")


def _tune(arguments: argparse.Namespace) -> int:
    from exsel.errors import ExselError
    from exsel.training.environment import resolve_device

    path: Path = arguments.tune
    if resolve_device(arguments.device) != "cuda":
        raise ExselError("--tune times Triton's kernels on a GPU, and there is none: run it where --device cuda works")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ExselError(f"--tune {path} cannot be written: name a file in a folder that exists")
    plan = _plan(arguments)

    from exsel.bench.session import tuning_cases
    from exsel.bench.timing import CudaClock
    from exsel.bench.tuning import tune
    from exsel.cli.bench_display import make_display
    from exsel.files import read_json, write_json

    found = read_json(path) if path.exists() else {}
    with make_display() as display:
        tune(tuning_cases(plan), CudaClock(), display, found, keep=lambda found: write_json(path, found))
    print(f"configurations: {path}")
    return 0
