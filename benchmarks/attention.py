"""What attention and decoding cost: the numbers of docs/performance.md that are kept in ``benchmarks/results``.

    python benchmarks/attention.py [--device cpu|cuda] [other flags of exsel bench]

Runs ``exsel bench attention decode`` and keeps its ``bench.json`` by the name of the device; ``python
benchmarks/tables.py`` then makes the tables. About an hour on two cores, minutes on a GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from exsel.cli import main as exsel
from exsel.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"


def measure(name: str, subjects: Sequence[str], flags: Sequence[str]) -> int:
    """Run ``exsel bench`` and keep what it measured as ``NAME_DEVICE.json``; partial results are not kept."""
    if not {"-h", "--help", "--out", "--overwrite", "--tune", "--json"}.isdisjoint(flags):
        print(f"usage: python benchmarks/{name}.py [flags of exsel bench that say what is measured]", file=sys.stderr)
        return 2
    work = Path("runs") / f"bench-{name}"
    code = exsel(["bench", *subjects, *flags, "--out", str(work), "--overwrite"])
    if code != 0:
        return code
    record = read_json(work / "bench.json")
    record["command"] = " ".join([f"python benchmarks/{name}.py", *flags])
    device = re.sub(r"[^a-z0-9]+", "-", record["machine"]["device"].lower()).strip("-")
    path = RESULTS / f"{name}_{device}.json"
    write_json(path, record)
    print(f"kept: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(measure("attention", ["attention", "decode"], sys.argv[1:]))
