"""``exsel export``: a saved model for programs without exsel."""

from __future__ import annotations

import argparse

from exsel.cli.checkpoint import find_checkpoint
from exsel.errors import ExselError, require_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("folder", metavar="FOLDER", help="a saved model, or a run's folder")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--standalone",
        action="store_true",
        help="the folder gets one file of code: transformers loads it with trust_remote_code=True, without exsel",
    )
    form.add_argument("--gguf", action="store_true", help="refused: llama.cpp has no graph for these models")


def run(arguments: argparse.Namespace) -> int:
    """Write the code and say how the folder loads now."""
    if arguments.gguf:
        raise ExselError(
            "a GGUF file cannot hold these models: llama.cpp has no graph with exclusive or selective attention, and "
            "would compute without it. Where exsel is not installed use --standalone and transformers"
        )
    require_all("models")
    from exsel.standalone import export_standalone

    folder = find_checkpoint(arguments.folder)
    print(f"wrote {export_standalone(folder)}")
    print(f"without exsel: AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)")
    return 0
