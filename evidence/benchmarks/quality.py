"""Does it help? The main job at length: 600 steps of 4096 bytes of standard-library source, with selection's control.

    python -m evidence.benchmarks.quality [--out FILE] [--work runs/quality] [--seeds 0,1,2] [--resume]

Runs ``exsel compare`` with the default model and keeps its results without the curves of single steps. About 25
minutes a seed on two cores; ``--resume`` goes on with a run that was interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exsel.cli import main as exsel
from exsel.files import read_json, write_json
from exsel.variants import CONTROL, VARIANTS


def compared(flags: Sequence[str], work: Path, *, resume: bool) -> dict[str, Any]:
    """Run ``exsel compare`` in a folder; its results without the curves of single steps.

    Raises:
        SystemExit: it ended otherwise than well, with its exit code.
        KeyboardInterrupt: it was interrupted, and saved what there was.
    """
    code = exsel(["compare", *flags, "--out", str(work), "--resume" if resume else "--overwrite"])
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code != 0:
        raise SystemExit(code)
    results: dict[str, Any] = read_json(work / "results.json")
    for run in results["runs"]:
        del run["train_curve"]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("evidence/benchmarks/results/quality_tiny.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", default="0,1,2", help="one run of each variant a seed (%(default)s)")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    flags = (
        f"--variants {','.join((*VARIANTS, CONTROL.name))} --tokens {600 * 4096} --seq-len 512 --batch-size 8 "
        f"--seeds {arguments.seeds} --evaluation-blocks 64"
    )
    results = compared(flags.split(), arguments.work, resume=arguments.resume)
    results["command"] = f"python -m evidence.benchmarks.quality --seeds {arguments.seeds}"
    write_json(arguments.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
