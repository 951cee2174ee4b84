"""The two things that go wrong outside the mathematics: a user's mistake and a missing extra."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can mend; the command line shows its text (one or two lines) and exits with 2."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``exsel[extra]`` installs.

    Raises:
        ImportError: with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise ImportError(f"{module} is not installed: pip install 'exsel[{extra}]'") from error
