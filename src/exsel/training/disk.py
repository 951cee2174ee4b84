"""Whether the disk holds what is going to be written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from exsel.errors import ExselError
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.run_model import sketch_model
from exsel.training.settings import Settings

#: Checkpoints kept while a run goes on: the second is there should the first turn out to be unreadable.
KEPT_CHECKPOINTS = 2


def check_disk(runs: Sequence[Settings], vocab_size: int, folder: Path) -> None:
    """Check that the runs' models and the checkpoints of one run at a time fit on the disk.

    Args:
        runs: of a comparison, or the only one.
        vocab_size: of their data.
        folder: of all of them; what it holds already counts as free, since it is kept or replaced.

    Raises:
        ExselError: they do not fit, or one of the models cannot be built (see `exsel.training.run_model.sketch_model`).
    """
    sizes = [_sizes(settings, vocab_size) for settings in runs]
    # One more than is kept exists while it is written.
    needed = sum(model for model, _ in sizes) + max(checkpoint for _, checkpoint in sizes) * (KEPT_CHECKPOINTS + 1)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free + held
    if free < needed:
        raise ExselError(
            f"--out {folder} has {_mebibytes(free)} free, and the models and checkpoints of this need "
            f"{_mebibytes(needed)}: free some disk or choose another folder"
        )


def _sizes(settings: Settings, vocab_size: int) -> tuple[int, int]:
    """Bytes of the model, and of a checkpoint: the weights, and the optimizer's two averages of those that train."""
    model = sketch_model(settings, vocab_size)
    trained = mechanism_parameters(model).values() if settings.train == "new" else model.parameters()
    weights, averages = (4 * sum(parameter.numel() for parameter in some) for some in (model.parameters(), trained))
    return weights, weights + 2 * averages


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
