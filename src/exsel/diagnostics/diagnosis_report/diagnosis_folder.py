"""The files in the folder of a diagnosis."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from exsel.diagnostics.metrics import METRICS
from exsel.errors import ExselError
from exsel.files import read_json

#: The numbers of the model, and those of the model that it is compared with.
RESULTS, AGAINST = "diagnostics.json", "diagnostics-against.json"
#: The pages, and the folder of the figures.
REPORT, TOKENS, FIGURES = "report.html", "tokens.html", "figures"
#: The names of all figures' files.
FIGURE = re.compile(
    rf"(similarities|strength|{'|'.join(metric.name for metric in METRICS)})-(layers|heads|positions|buckets)"
    r"(-first|-second|-difference)?\.(svg|png|pdf)"
)


def is_diagnosis(folder: Path) -> bool:
    """Whether a folder holds a diagnosis; what its ``diagnostics.json`` holds decides, if it can be read."""
    path = folder / RESULTS
    if not path.is_file():
        return False
    try:
        values = read_json(path)
    except ExselError:
        return (folder / REPORT).is_file()
    return isinstance(values, dict) and {"format", "exsel_version", "layers"} <= values.keys()


def clear(folder: Path, *, but: Collection[str] = ()) -> None:
    """Remove the files of a diagnosis from a folder, except those in ``but``, and nothing else."""
    figures = folder / FIGURES
    found = [path for path in figures.glob("*") if FIGURE.fullmatch(path.name)]
    # The results come last: a folder with results is known to be a diagnosis.
    for path in (*found, *(folder / name for name in (AGAINST, TOKENS, REPORT, RESULTS))):
        if path.relative_to(folder).as_posix() not in but:
            path.unlink(missing_ok=True)
    if figures.is_dir() and not any(figures.iterdir()):
        figures.rmdir()
