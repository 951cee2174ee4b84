"""``python -m evidence COMMAND``, in a clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from exsel.cli import run_command

COMMANDS = {
    "reproduce": (
        "evidence.papers.reproduce",
        "run the papers' experiments again, and set what comes out beside what was published",
    ),
    "survey": (
        "evidence.survey.verify_all",
        "build, upgrade and verify a small model of every type that transformers has",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, see :func:`exsel.cli.run_command`."""
    return run_command("python -m evidence", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
