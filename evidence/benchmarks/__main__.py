"""``python -m evidence.benchmarks COMMAND``, in a clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from exsel.cli import run_command

COMMANDS = {"gpu": ("evidence.benchmarks.gpu", "measure on a GPU what docs/performance.md wants to know, and train")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, see :func:`exsel.cli.run_command`."""
    return run_command("python -m evidence.benchmarks", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
