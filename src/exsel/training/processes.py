"""The processes that train together."""

from __future__ import annotations

import os

from exsel.errors import ExselError


def check_alone() -> None:
    """Check that no launcher has started several processes for one run.

    Raises:
        ExselError: it has.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise ExselError(f"a run takes one process, and the launcher started {count}: start exsel without it")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ExselError(f"accelerate's mixed precision ({precision}) is not used here: give --dtype bfloat16 instead")
