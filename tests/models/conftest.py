from __future__ import annotations

from typing import Any

import pytest

from models.small_models import SHAPES, VARIANTS


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The mechanisms of one of the four variants."""
    return VARIANTS[request.param]


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The other options: plain ones, and all at once."""
    return SHAPES[request.param]
