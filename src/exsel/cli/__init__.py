"""The command line. A command's module is imported when it runs, and what it needs when its work starts."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NoReturn

from exsel.cli.collecting import deferred_collection
from exsel.errors import ExselError, MissingPackageError, first_line, is_out_of_memory
from exsel.version import __version__

#: What each command does; its module is ``exsel.cli.NAME`` with ``add_arguments(parser)`` and ``run(arguments) -> int``
COMMANDS = {
    "compare": "train variants side by side and report which is better per token and per second",
    "report": "make the page of a comparison again, or of several together",
    "train": "train one variant",
    "generate": "continue a prompt with a trained model",
    "eval": "loss, perplexity and bits per byte of a trained model on text",
    "diagnose": "see what attention does inside a model, layer by layer, head by head and token by token",
    "support": "say what an upgrade would do to a model, layer by layer",
    "export": "write a saved model's code into its folder, so that it loads where exsel is not installed",
    "pull": "fetch a pretrained model to try everything on",
    "bench": "measure what the mechanisms cost on this machine, against everything else that one could use",
}


class _Parser(argparse.ArgumentParser):
    """Reports a mistake and where to read on, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print two lines and exit with 2."""
        said = re.sub(r"^argument (\S+): must ", r"\1 must ", message)
        self.exit(_refuse(f"{_short(said, lines=1)}\nall that it takes: {self.prog} --help"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``exsel``; returns the exit code, see :func:`run_command`."""
    return run_command("exsel", {name: (f"exsel.cli.{name}", text) for name, text in COMMANDS.items()}, arguments)


def run_command(program: str, commands: Mapping[str, tuple[str, str]], arguments: Sequence[str] | None = None) -> int:
    """Run one of a program's commands, each with its module and what it does; by default on the process's arguments.

    Returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n.
    """
    # Before torch is imported: its threads sleep while they wait for each other. By default they keep their cores busy,
    # and beside another busy program on two cores every step takes three times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog=program, description="Exclusive and selective attention for PyTorch Transformers.")
    parser.add_argument("-V", "--version", action="version", version=f"exsel {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in commands.items():
        # Code that looks for a flag among the given arguments would miss an abbreviation.
        subparser = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        if given[:1] == [name]:
            importlib.import_module(module).add_arguments(subparser)
    parsed = parser.parse_args(given, argparse.Namespace(given=given))
    try:
        _check_words(given)
        with nullcontext() if arguments is not None else deferred_collection():
            code: int = importlib.import_module(commands[parsed.command][0]).run(parsed)
    except (ExselError, MissingPackageError) as error:
        return _refuse(str(error))
    except OSError as error:
        # A full disk, a folder without permission, a vanished file: the system's words name it.
        return _refuse(first_line(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refuse("this does not fit into the memory: make sequences, batches or the model smaller")
    except KeyboardInterrupt:
        print("exsel: interrupted", file=sys.stderr)
        return 130
    return code


def _check_words(given: Sequence[str]) -> None:
    """Refuse what no command can use, naming the flag: empty values, and bytes that are not text."""
    flag = "an argument"
    for word in given:
        name, separator, value = word.partition("=")
        flag, value = (name, value if separator else "-") if word.startswith("--") else (flag, word)
        if not value:
            raise ExselError(f"{flag} is empty: give it a value, or leave it out")
        if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
            raise ExselError(f"{flag} is not UTF-8 text: {word!r}")


def _refuse(message: str) -> int:
    if "WORLD_SIZE" in os.environ:
        from exsel.training.processes import speaks

        if not speaks():
            return 2
    print(f"exsel: {_short(message, lines=2)}", file=sys.stderr)
    return 2


def _short(message: str, *, lines: int) -> str:
    """``message``, shortened to fit on a screen."""
    return "\n".join(
        line if len(line) <= 600 else f"{line[:500]} … {line[-80:]}" for line in message.splitlines()[:lines]
    )
