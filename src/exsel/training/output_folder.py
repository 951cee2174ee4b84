"""What lies where in an output folder: whether a folder is one, how something is saved there, how one is emptied."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exsel.errors import ExselError, first_line
from exsel.files import MANIFEST, read_json

# Of a run.
SETTINGS, METRICS, RESULT = "settings.json", "metrics.jsonl", "result.json"
MODEL, CHECKPOINT = "model", "checkpoint-"
# A checkpoint and a model are put together in these folders, and renamed when they are whole.
CHECKPOINT_STAGING, MODEL_STAGING = ".saving", ".model"
# Of a comparison, with a folder for each run below RUNS. In the folder of a lone run, RUNS is TensorBoard's.
RESULTS, REPORT, RUNS = "results.json", "report.html", "runs"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    # A user's own checkpoint-7-backup or checkpoint-² is none of them.
    names = ((path, re.fullmatch(rf"{CHECKPOINT}([1-9][0-9]{{0,17}})", path.name)) for path in folder.glob("*"))
    found = {int(match[1]): path for path, match in names if match and path.is_dir()}
    return [found[step] for step in sorted(found)]


def last_good(folder: Path) -> str:
    """The last checkpoint, in words."""
    found = checkpoints(folder)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved"


@contextmanager
def or_go_on(failure: str, folder: Path) -> Iterator[None]:
    """Within, an error of the disk says what failed, and from where the run in ``folder`` can go on.

    Raises:
        ExselError: instead of the disk's or of safetensors' error.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ExselError(
            f"{failure} ({first_line(error)}); {last_good(folder)}. Mend that, then go on with --resume"
        ) from error


@contextmanager
def staged(folder: Path, name: str, what: str) -> Iterator[Path]:
    """A path in ``folder`` to put something together at, which is gone afterwards: rename what is whole.

    Raises:
        ExselError: see :func:`or_go_on`.
    """
    staging = folder / name
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with or_go_on(f"{what} could not be saved in {folder}", folder):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, whole or begun: judged by what its settings say, not by the file's name."""
    # Damaged settings beside a record are still a run's; reading them later reports the damage.
    return _has_keys(folder / SETTINGS, {"variant", "seq_len"}, damaged=(folder / METRICS).is_file())


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison, whole or begun."""
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
    # The files by which is_run knows a run go last, so that a removal that was cut short can be repeated.
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
