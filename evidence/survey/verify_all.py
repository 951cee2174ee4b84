"""``python -m evidence survey``: what an upgrade does to every model type of transformers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from exsel.cli.flags import add_json_argument, listed
from exsel.cli.outputs import json_output
from exsel.errors import ExselError, require_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--types", type=listed(str), metavar="NAME[,NAME…]", help="of these types only, such as llama,gpt2 (all)"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Every model type, one after the other; 1 where an upgraded model is wrong."""
    require_all("models")
    with json_output(arguments.json) as write:
        return _survey(arguments.types, write)


def _survey(types: Sequence[str] | None, write: Callable[[Any], None]) -> int:
    import time
    from collections import Counter

    import torch
    import transformers
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging as transformers_logging

    from evidence.survey.outcomes import OUTCOMES
    from evidence.survey.records import SurveyRecord, survey
    from evidence.survey.zoo import model_types
    from exsel.cli.display import activity
    from exsel.report.formatting import time_left

    known = model_types()
    chosen = known if types is None else types
    for name in chosen:
        if name not in known:
            raise ExselError(f"transformers {transformers.__version__} has no model type {name!r}")
    transformers_logging.set_verbosity_error()
    records: list[SurveyRecord] = []
    start = time.perf_counter()
    with activity() as say:
        for number, record in enumerate(survey(chosen), start=1):
            records.append(record)
            left = time_left((time.perf_counter() - start) / number * (len(chosen) - number))
            say(f"  {record.model_type} ({number} of {len(chosen)}; {left})")
    counts = Counter(record.outcome for record in records)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    write({**versions, "counts": counts, "records": [record.to_dict() for record in records]})
    console = Console()
    if types is not None:
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
