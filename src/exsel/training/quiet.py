"""transformers, kept from talking through the progress display."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within, transformers shows no bars and no notices; errors still pass."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers.logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        transformers.logging.set_verbosity(level)
