"""The command line. A command's module is imported when that command runs, and what it needs when it works."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import exsel
from exsel.errors import ExselError, first_line

#: Each command's module is ``exsel.cli.NAME`` with ``add_arguments(parser)`` and ``run(arguments) -> int``.
COMMANDS = {
    "compare": "train variants side by side and report which is better per token and per second",
    "train": "train one variant",
    "generate": "continue a prompt with a trained model",
    "eval": "loss, perplexity and bits per byte of a trained model on text",
    "diagnose": "see what attention does inside a model, layer by layer, head by head and token by token",
    "support": "say what an upgrade would do to a model, layer by layer, or to every model type there is",
    "reproduce": "run the papers' experiments again, and set what comes out beside what was published",
    "bench": "measure what the mechanisms cost on this machine, against everything else that one could use",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="exsel", description="Exclusive and selective attention for PyTorch Transformers."
    )
    parser.add_argument("-V", "--version", action="version", version=f"exsel {exsel.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        # Abbreviated flags would escape those who look at what was given.
        subparser = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        if given[:1] == [name]:
            importlib.import_module(f"exsel.cli.{name}").add_arguments(subparser)
    parsed = parser.parse_args(given, argparse.Namespace(given=given))
    try:
        code: int = importlib.import_module(f"exsel.cli.{parsed.command}").run(parsed)
    except (ExselError, ImportError) as error:
        print(f"exsel: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk, a folder without permission, a vanished file: the system's words name it.
        print(f"exsel: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("exsel: interrupted", file=sys.stderr)
        return 130
    return code
