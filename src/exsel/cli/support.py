"""``exsel support``: what an upgrade would do to a model, or to every model type there is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from exsel.cli.arguments import MODEL, add_json_argument, json_output, listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{MODEL}; its configuration suffices")
    parser.add_argument(
        "--all", action="store_true", help="build, upgrade and verify a small model of every type in transformers"
    )
    parser.add_argument(
        "--types", type=listed(str), metavar="NAME[,NAME…]", help="of these types only, such as llama,gpt2"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 where an upgraded model is wrong."""
    from exsel.errors import ExselError, require_all

    require_all("models")
    surveys = arguments.all or arguments.types is not None
    if surveys == (arguments.model is not None):
        raise ExselError("give a MODEL, or --all or --types for the types of models that transformers has")
    with json_output(arguments.json) as write:
        return _survey(arguments, write) if surveys else _one(arguments.model, write)


def _one(text: str, write: Callable[[Any], None]) -> int:
    """A model, from its configuration alone."""
    import torch
    from transformers import AutoModel

    from exsel.cli.checkpoint import find_model
    from exsel.errors import explained
    from exsel.training.loading import read_config
    from exsel.upgrading import support, wrapping

    config = read_config(find_model(text))
    model_class = wrapping.model_class_of(config)
    with explained(f"{text} cannot be built"), torch.device("meta"):
        model = AutoModel.from_config(config) if model_class is None else model_class(config)
    answer = support(model)
    print(answer)
    write(answer.to_dict())
    return 0


def _survey(arguments: argparse.Namespace, write: Callable[[Any], None]) -> int:
    """Every model type, one after the other; hundreds of small models in minutes."""
    from collections import Counter

    import torch
    import transformers
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from transformers.utils import logging as transformers_logging

    from exsel.errors import ExselError
    from exsel.survey.outcomes import OUTCOMES
    from exsel.survey.records import Record, survey
    from exsel.survey.zoo import model_types

    known = model_types()
    chosen = known if arguments.types is None else arguments.types
    for name in chosen:
        if name not in known:
            raise ExselError(f"transformers {transformers.__version__} has no model type {name!r}")
    transformers_logging.set_verbosity_error()
    records: list[Record] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("upgrading", total=len(chosen))
        for record in survey(chosen):
            records.append(record)
            progress.update(task, advance=1, description=record.model_type)
    counts = Counter(record.outcome for record in records)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    write({**versions, "counts": counts, "records": [record.to_dict() for record in records]})
    console = Console()
    if arguments.types is not None:
        table = Table("type", "outcome", "layers", "reasons")
        for record in records:
            table.add_row(record.model_type, record.outcome, str(record.layers or ""), "\n".join(record.reasons))
        console.print(table)
    summary = Table("model types", "")
    for outcome, words in OUTCOMES.items():
        summary.add_row(str(counts[outcome]), words)
    console.print(summary)
    for record in records:
        if record.outcome == "wrong":
            console.print(f"[red]{record.model_type}[/red]: {record.reasons[0]}", highlight=False)
    return 1 if counts["wrong"] else 0
