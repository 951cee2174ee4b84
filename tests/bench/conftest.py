from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from exsel.bench.measuring import Clock, Work


class ScriptedClock(Clock):
    """Times that a test gives, by the name of the only pass; an exception among them is raised."""

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self._script: dict[str, Iterator[Any]] = {name: iter(times) for name, times in script.items()}

    def time(self, work: Work) -> dict[str, float]:
        seconds = next(self._script[work.name])
        if isinstance(seconds, BaseException):
            raise seconds
        return {"step": seconds}


@pytest.fixture
def said() -> list[str]:
    """What was said."""
    return []


def idle(name: str) -> Work:
    return Work(forward=lambda: torch.zeros(1), name=name)
