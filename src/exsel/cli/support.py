"""``exsel support``: what an upgrade would do to a model, or to every model type there is."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a folder with a config.json, or a name on the hub")
    parser.add_argument(
        "--all", action="store_true", help="build, upgrade and verify a small model of every type in transformers"
    )
    parser.add_argument("--types", metavar="NAMES", help="of these types only, comma-separated: llama,gpt2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the answers there")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 where an upgraded model is wrong."""
    from exsel.errors import ExselError, require_all

    require_all("models")
    surveys = arguments.all or arguments.types is not None
    if surveys == (arguments.model is not None):
        raise ExselError("give a MODEL, or --all or --types for the types of models that transformers has")
    return _survey(arguments) if surveys else _one(arguments)


def _one(arguments: argparse.Namespace) -> int:
    """A model, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModel

    from exsel.errors import ExselError, first_line
    from exsel.files import write_json
    from exsel.upgrading import support, wrapping

    if arguments.model.startswith(("/", ".")) and not Path(arguments.model).exists():
        raise ExselError(f"no such folder: {arguments.model}")
    try:
        config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=False)
    except ExselError:
        raise
    except (OSError, ValueError) as error:
        raise ExselError(f"{arguments.model} cannot be read: {first_line(error)}") from error
    model_class = wrapping.model_class_of(config)
    with torch.device("meta"):
        model = AutoModel.from_config(config) if model_class is None else model_class(config)
    answer = support(model)
    print(answer)
    if arguments.json is not None:
        write_json(arguments.json, answer.to_dict())
    return 0


def _survey(arguments: argparse.Namespace) -> int:
    """Every model type, one after the other; hundreds of small models in minutes."""
    from collections import Counter

    import torch
    import transformers
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from transformers.utils import logging as transformers_logging

    from exsel.errors import ExselError
    from exsel.files import write_json
    from exsel.survey.outcomes import OUTCOMES
    from exsel.survey.records import Record, survey
    from exsel.survey.zoo import model_types

    known = model_types()
    chosen = known if arguments.types is None else [name.strip() for name in arguments.types.split(",")]
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
    if arguments.json is not None:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        write_json(arguments.json, {**versions, "counts": counts, "records": [record.to_dict() for record in records]})
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
