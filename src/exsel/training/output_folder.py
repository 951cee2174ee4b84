"""What lies where in an output folder, whether a folder is one, and how one is emptied."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from exsel.errors import ExselError
from exsel.files import MANIFEST, read_json

# Of a run.
SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
MODEL = "model"
CHECKPOINT = "checkpoint-"
# Where a checkpoint and a model are put together, to be renamed when they are whole.
CHECKPOINT_STAGING = ".saving"
MODEL_STAGING = ".model"
# Of a comparison; below RUNS a folder for each run (of a lone run: TensorBoard's).
RESULTS = "results.json"
REPORT = "report.html"
RUNS = "runs"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    # Not what a user has put there under a name like it, such as checkpoint-7-backup or checkpoint-².
    names = ((path, re.fullmatch(rf"{CHECKPOINT}([1-9][0-9]{{0,17}})", path.name)) for path in folder.glob("*"))
    found = {int(match[1]): path for path, match in names if match and path.is_dir()}
    return [found[step] for step in sorted(found)]


def last_good(folder: Path) -> str:
    """The last checkpoint, in words."""
    found = checkpoints(folder)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, whole or begun: judged by what its settings say, not by the file's name."""
    # Damaged settings beside a record are still a run's, which whoever reads them will say.
    return _has_keys(folder / SETTINGS, {"variant", "seq_len"}, damaged=(folder / METRICS).is_file())


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison, whole or begun."""
    damaged = (folder / REPORT).is_file()
    return bool(_runs(folder)) or _has_keys(folder / RESULTS, {"exsel_version", "variants"}, damaged=damaged)


def clear_output(folder: Path) -> None:
    """Remove a run or a comparison from a folder, which stays, and nothing that was put there beside it."""
    has_results = is_comparison(folder)
    for run in _runs(folder):
        _clear_run(run)
        _remove_if_empty(run)
    if is_run(folder):
        _clear_run(folder)
    if has_results:
        for name in (RESULTS, REPORT):
            (folder / name).unlink(missing_ok=True)
    _remove_if_empty(folder / RUNS)


def _runs(folder: Path) -> list[Path]:
    return [path for path in (folder / RUNS).glob("*") if is_run(path)]


def _clear_run(folder: Path) -> None:
    for path in (*checkpoints(folder), *(folder / name for name in (MODEL, CHECKPOINT_STAGING, MODEL_STAGING))):
        if path.exists():
            shutil.rmtree(path)
    for events in (folder / RUNS).glob("*/events.out.tfevents.*"):
        events.unlink()
        _remove_if_empty(events.parent)
    _remove_if_empty(folder / RUNS)
    # Last what tells that this is a run, so that a removal that was cut short can be repeated.
    for name in (MANIFEST, RESULT, METRICS, SETTINGS):
        (folder / name).unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _has_keys(path: Path, keys: set[str], *, damaged: bool) -> bool:
    if not path.is_file():
        return False
    try:
        values = read_json(path)
    except ExselError:
        return damaged
    return isinstance(values, dict) and keys <= values.keys()
