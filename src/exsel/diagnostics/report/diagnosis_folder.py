"""What lies where in the folder of a diagnosis. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from exsel.diagnostics.metrics import METRICS
from exsel.errors import ExselError
from exsel.files import read_json

#: The numbers of the model, and those of the one that it is held against.
RESULTS, AGAINST = "diagnostics.json", "diagnostics-against.json"
#: The pages, and the folder of the figures beside them.
REPORT, TOKENS, FIGURES = "report.html", "tokens.html", "figures"
#: Of a figure.
KINDS = (".svg", ".png", ".pdf")

# A figure is named by what it shows, where, and of which model.
_SHOWS = {"similarities", "strength", *(metric.name for metric in METRICS)}
_WHERE = {"layers", "heads", "positions", "buckets"}
_OF = {"first", "second", "difference"}


def is_diagnosis(folder: Path) -> bool:
    """Whether a folder holds a diagnosis: judged by what its numbers say, not by the file's name."""
    path = folder / RESULTS
    if not path.is_file():
        return False
    try:
        values = read_json(path)
    except ExselError:
        return (folder / REPORT).is_file()
    return isinstance(values, dict) and {"format", "exsel_version", "layers"} <= values.keys()


def clear(folder: Path, *, but: Collection[str] = ()) -> None:
    """Remove a diagnosis from a folder, and nothing that was put there beside it.

    Args:
        folder: that holds one.
        but: the paths of files that stay, from the folder.
    """
    figures = folder / FIGURES
    found = [path for path in figures.glob("*") if path.suffix in KINDS and _is_figure(path.stem)]
    # Last what tells that this is a diagnosis.
    for path in (*found, *(folder / name for name in (AGAINST, TOKENS, REPORT, RESULTS))):
        if path.relative_to(folder).as_posix() not in but:
            path.unlink(missing_ok=True)
    if figures.is_dir() and not any(figures.iterdir()):
        figures.rmdir()


def _is_figure(stem: str) -> bool:
    shows, _, rest = stem.partition("-")
    where, _, of = rest.partition("-")
    return shows in _SHOWS and where in _WHERE and of in _OF | {""}
