"""What a diagnosis keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exsel.diagnostics import Diagnosis


def small() -> Diagnosis:
    return Diagnosis(exsel_version="1", model={"name": "m"}, data={}, layers=[{"name": "a", "metrics": {}, "gaps": {}}])


def test_there_and_back() -> None:
    values = json.loads(json.dumps(small().to_dict()))
    assert list(values)[:2] == ["format", "exsel_version"]
    assert Diagnosis.from_dict(values) == small()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, and this version of exsel reads 1"),
        ({"layers": {}}, "no proper 'layers'"),
        ({"layers": [{}]}, "a layer without metrics and gaps"),
        ({"more": 1}, "unknown entry 'more'"),
    ],
)
def test_another_content(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diagnosis.from_dict({**small().to_dict(), **change})


def test_no_diagnosis() -> None:
    for values in ([], {"steps": 1}):
        with pytest.raises(ValueError, match="no diagnosis"):
            Diagnosis.from_dict(values)
    lacking = small().to_dict()
    del lacking["data"]
    with pytest.raises(ValueError, match="lacks 'data'"):
        Diagnosis.from_dict(lacking)
