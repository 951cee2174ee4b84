"""``exsel support``: what an upgrade would do to a model."""

from __future__ import annotations

import argparse

from exsel.cli.flags import MODEL, add_json_argument
from exsel.cli.model_line import say_model
from exsel.cli.outputs import json_output
from exsel.errors import explained, require_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL}; its configuration suffices")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table of a model's layers, from its configuration alone."""
    require_all("models")
    with json_output(arguments.json) as write:
        source = say_model(arguments.model)

        import torch
        from transformers import AutoModel

        from exsel.training.saved_models import read_config
        from exsel.upgrading import support, transformers_models

        config = read_config(source)
        model_class = transformers_models.model_class_of(config)
        with explained(f"{arguments.model} cannot be built"), torch.device("meta"):
            model = AutoModel.from_config(config) if model_class is None else model_class(config)
        answer = support(model)
        print(answer)
        write(answer.to_dict())
    return 0
