"""When Python looks for garbage in a process of its own: not while a command imports what it needs.

``import torch`` and what follows make more than a million objects, none of them garbage. Looking through them again and
again takes a fourth of the time until a command works.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_USUAL = gc.get_threshold()
# More objects than are made before a command's work begins.
_DEFERRED = 10_000_000


@contextmanager
def deferred_collection() -> Iterator[None]:
    """Do not look for garbage until :func:`collect_as_usual`, and look through everything only when the block ends."""
    gc.set_threshold(_DEFERRED)
    try:
        yield
    finally:
        gc.set_threshold(*_USUAL)
        gc.unfreeze()  # Triton's library complains of objects that are left when the process ends


def collect_as_usual() -> None:
    """From now on, but never look at what is there already; does nothing outside :func:`deferred_collection`."""
    if gc.get_threshold()[0] == _DEFERRED:
        gc.freeze()
        gc.set_threshold(*_USUAL)
