"""What attention costs: the numbers of docs/performance.md that are kept in ``results``.

    python -m evidence.benchmarks.attention [--part NAME] [--device cpu|cuda] [other flags of exsel bench]

Runs ``exsel bench attention`` and keeps its ``bench.json`` by the name of the device; ``python -m
evidence.benchmarks.tables`` then makes the tables. ``--part`` names one of several runs on one device, of different
shapes or lengths, each of which is kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.benchmarks.cpu_rows import command_of
from exsel.cli import main as exsel
from exsel.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"


def measure_and_keep(name: str, subjects: Sequence[str], flags: Sequence[str]) -> int:
    """Run ``exsel bench`` and keep what it measured as ``NAME_DEVICE[_PART].json``; partial results are not kept."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--part", default="")
    command = command_of(f"evidence.benchmarks.{name}", flags)
    known, flags = parser.parse_known_args(flags)
    is_ours = {"-h", "--help", "--out", "--overwrite"}.isdisjoint(flags)
    if not is_ours or not re.fullmatch(r"[a-z0-9-]*", known.part):
        print(
            f"usage: python -m evidence.benchmarks.{name} [--part lower-case-name] [flags of exsel bench that say "
            "what is measured]",
            file=sys.stderr,
        )
        return 2
    part = f"_{known.part}" if known.part else ""
    work = Path("runs") / f"bench-{name}{part}"
    code = exsel(["bench", *subjects, *flags, "--out", str(work), "--overwrite"])
    if code != 0:
        return code
    record = read_json(work / "bench.json")
    record["command"] = command
    device = re.sub(r"[^a-z0-9]+", "-", record["machine"]["device"].lower()).strip("-")
    path = RESULTS / f"{name}_{device}{part}.json"
    write_json(path, record)
    print(f"kept: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(measure_and_keep("attention", ["attention"], sys.argv[1:]))
