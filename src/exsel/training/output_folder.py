"""The layout of an output folder: how to recognise one, save into it, and empty it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exsel.errors import ExselError, first_line
from exsel.files import MANIFEST, read_json

# The names in a run's folder.
SETTINGS, METRICS, RESULT = "settings.json", "metrics.jsonl", "result.json"
MODEL, CHECKPOINT = "model", "checkpoint-"
# Checkpoints and models are written into these folders, which are renamed when they are complete.
CHECKPOINT_STAGING, MODEL_STAGING = ".saving", ".model"
# The names in a comparison's folder; each run has a folder below RUNS. In a single run's folder, RUNS is TensorBoard's.
RESULTS, REPORT, RUNS = "results.json", "report.html", "runs"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    # A user's own checkpoint-7-backup or checkpoint-² does not match.
    names = ((path, re.fullmatch(rf"{CHECKPOINT}([1-9][0-9]{{0,17}})", path.name)) for path in folder.glob("*"))
    found = {int(match[1]): path for path, match in names if match and path.is_dir()}
    return [found[step] for step in sorted(found)]


def last_good(folder: Path) -> str:
    """The last checkpoint, in words."""
    found = checkpoints(folder)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved"


@contextmanager
def or_go_on(failure: str, folder: Path) -> Iterator[None]:
    """Turn a disk error into one that says what failed, and from where the run in ``folder`` can go on."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ExselError(
            f"{failure} ({first_line(error)}); {last_good(folder)}. Mend that, then go on with --resume"
        ) from error


@contextmanager
def staged(folder: Path, name: str, what: str) -> Iterator[Path]:
    """A temporary path in ``folder``, removed afterwards: write there, and rename what is complete."""
    staging = folder / name
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with or_go_on(f"{what} could not be saved in {folder}", folder):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not, judged by the content of its settings file."""
    # Damaged settings beside a record count as a run's. Reading them later reports the damage.
    return _has_keys(folder / SETTINGS, {"variant", "seq_len"}, damaged=(folder / METRICS).is_file())


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison, finished or not."""
    damaged = (folder / REPORT).is_file()
    return bool(_runs(folder)) or _has_keys(folder / RESULTS, {"exsel_version", "variants"}, damaged=damaged)


def clear_output(folder: Path) -> None:
    """Remove a run or a comparison from a folder; the folder itself and other files in it stay."""
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
    # The files that is_run looks for are removed last, so that an interrupted removal can be repeated.
    for name in (MANIFEST, RESULT, METRICS, SETTINGS):
        (folder / name).unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _has_keys(path: Path, keys: set[str], *, damaged: bool) -> bool:
    try:
        values = read_json(path) if path.is_file() else None
    except ExselError:
        return damaged
    return isinstance(values, dict) and keys <= values.keys()
