"""Does it help? The main job at length: 300 steps of 4096 bytes of standard-library source.

    python -m evidence.benchmarks.quality [--out FILE] [--work runs/quality] [--seeds 0] [--resume]

Runs ``exsel compare`` with the default model and keeps its results without the curves of single steps. About 10
minutes a seed on two cores; ``--resume`` goes on with a run that was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exsel.cli import main as exsel
from exsel.files import read_json, write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("evidence/benchmarks/results/quality_tiny.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", default="0", help="one after the other, as 0,1 (%(default)s)")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    command = [
        "compare",
        "--tokens",
        str(300 * 4096),
        "--seq-len",
        "512",
        "--batch-size",
        "8",
        "--seeds",
        arguments.seeds,
    ]
    how = "--resume" if arguments.resume else "--overwrite"
    code = exsel([*command, "--evaluation-blocks", "64", "--out", str(arguments.work), how])
    if code != 0:
        return code
    results = read_json(arguments.work / "results.json")
    for run in results["runs"]:
        del run["train_curve"]
    results["command"] = f"python -m evidence.benchmarks.quality --seeds {arguments.seeds}"
    write_json(arguments.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
