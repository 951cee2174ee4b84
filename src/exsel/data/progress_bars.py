"""The progress bars of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets` in the block."""
    were_disabled = datasets.are_progress_bars_disabled()
    if not were_disabled:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()
