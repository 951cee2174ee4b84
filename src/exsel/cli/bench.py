"""``exsel bench``: what the mechanisms cost on this machine."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exsel.cli.flags import listed, whole
from exsel.cli.outputs import check_out, command_line
from exsel.errors import ExselError, require_all
from exsel.files import read_json, write_json

if TYPE_CHECKING:
    from exsel.bench.session import Plan

#: The file in an output folder, beside the pictures.
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
    shapes = (
        "tiny, 25m, 124m, 0.7b, 1.4b, 2.7b, llama, or heads x key/value heads x head dimension such as 24x8x128 "
        "(124m,0.7b,1.4b,llama; by device for block)"
    )
    contenders = (
        "of attention and decode, beside stock: eager normalize, compiled normalize, compiled dot, "
        "exsel reference, exsel sdpa (all but the reference)"
    )
    dtypes = "float32, bfloat16 or float16 (auto: bfloat16 on cuda, float32 on cpu)"
    names, numbers = "NAME[,NAME…]", listed(whole(1))
    for flag, kind, default, metavar, text in (
        ("--device", str, "auto", None, "auto, cpu or cuda (%(default)s)"),
        ("--shapes", str, None, names, shapes),
        ("--seq-lens", numbers, None, "N[,N…]", "tokens a sequence; of decode: in its cache (by device)"),
        ("--dtype", str, "auto", None, dtypes),
        ("--contenders", listed(str), None, names, contenders),
        ("--model", str, None, "SIZE", "the size whose training step block times (by device)"),
        ("--rounds", whole(1), None, "N", "of every contender in turn (as a minute a case allows, at least 5)"),
    ):
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=text)
    out = Path("runs", "bench")
    text = "where bench.json and the pictures go (%(default)s)"
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")


def run(arguments: argparse.Namespace) -> int:
    """Check, measure, show."""
    require_all("train")
    check_out(arguments, _holds_results, "`exsel bench`")
    plan = _plan(arguments)

    from exsel.bench.pictures import clear_pictures, write_pictures
    from exsel.bench.session import jobs
    from exsel.bench.session import run as measure
    from exsel.bench.table import HEADINGS, gaps, table_rows
    from exsel.cli.display import activity, print_table

    folder: Path = arguments.out
    planned = jobs(plan)
    folder.mkdir(parents=True, exist_ok=True)
    clear_pictures(folder)

    keep = partial(write_json, folder / RESULTS)
    with activity() as say:
        record = measure(plan, planned, command=command_line(arguments.given), say=say, on_case=keep)
    pictures = write_pictures(record["rows"], folder)
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
    """The plan that the flags give."""
    from exsel.bench.attention import DEFAULT_NAMES, NAMES
    from exsel.bench.cases import DTYPES, check_names, parse_shapes
    from exsel.bench.session import SUBJECTS, Plan
    from exsel.machine import resolve_device

    subjects = tuple(dict.fromkeys(arguments.subjects)) or SUBJECTS[:1]
    check_names(subjects, SUBJECTS, "exsel bench")
    if arguments.device == "mps":
        raise ExselError("--device mps: choose auto, cpu or cuda")
    device = resolve_device(arguments.device)
    if device == "mps":  # chosen by auto
        device = "cpu"
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    check_names([dtype], DTYPES, "--dtype")
    names = DEFAULT_NAMES if arguments.contenders is None else tuple(arguments.contenders)
    check_names(names, NAMES, "--contenders")
    return Plan(
        subjects=subjects,
        device=device,
        dtype=dtype,
        shapes=None if arguments.shapes is None else parse_shapes(arguments.shapes),
        seq_lens=None if arguments.seq_lens is None else tuple(arguments.seq_lens),
        contenders=names,
        model=arguments.model,
        rounds=arguments.rounds,
    )


def _holds_results(folder: Path) -> bool:
    """Whether a folder holds results of this command, judged by the file's content, not by its name."""
    path = folder / RESULTS
    if not path.is_file():
        return False
    record = read_json(path)
    return isinstance(record, dict) and {"format", "command", "rows"} <= record.keys()
