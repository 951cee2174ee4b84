"""Whether the disk holds what is going to be written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from exsel.errors import UserError, first_line
from exsel.models import ExselForCausalLM
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
        UserError: they do not fit, or one of the models cannot be built.
    """
    models = [_weight_bytes(settings, vocab_size) for settings in runs]
    # A checkpoint is the weights and the optimizer's two averages; one more than is kept exists while it is written.
    needed = sum(models) + max(models) * 3 * (KEPT_CHECKPOINTS + 1)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free + held
    if free < needed:
        raise UserError(
            f"--out {folder} has {_mebibytes(free)} free, and the models and checkpoints of this need "
            f"{_mebibytes(needed)}: free some disk or choose another folder"
        )


def _weight_bytes(settings: Settings, vocab_size: int) -> int:
    config = settings.model_config(vocab_size, None)
    try:
        with torch.device("meta"):
            model = ExselForCausalLM(config)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"--model {settings.model} cannot be built ({type(error).__name__}: {first_line(error)})"
        ) from error
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
