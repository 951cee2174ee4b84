from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evidence.papers.outcome import BUDGETS, ExperimentRecord
from exsel.errors import ExselError
from exsel.files import write_json
from exsel.intervals import Estimate
from exsel.report.charts import Curve
from papers.fakes import FIRST, make_outcome, make_record


@pytest.mark.parametrize(("values", "sign"), [((1.0, 2.0), 0), ((1.0, 1.1, 1.2), 1), ((-1.0, -1.1, -1.2), -1)])
def test_sign(values: tuple[float, ...], sign: int) -> None:
    assert Estimate.of(*values).sign() == sign


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_record_survives_its_file(budget: Any, tmp_path: Path) -> None:
    record = make_record(FIRST, make_outcome(), budget=budget)
    write_json(tmp_path / "first-one.json", record.to_dict())
    assert ExperimentRecord.read(tmp_path / "first-one.json") == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "no record that this version of exsel reads (format 1, got 99)"),
        ({"outcome": {}}, "is damaged (first-one.outcome has or lacks 'conclusion', 'findings'"),
        ({"outcome": 1}, "first-one.outcome is 1"),
        ({"surprise": 1}, "first-one has or lacks 'surprise'"),
        ({"budget": "large"}, "first-one.budget is 'large'"),
        ({"seeds": [0, "1"]}, "first-one.seeds[1] is '1'"),
        ({"seeds": 0}, "first-one.seeds is 0"),
        ({"seconds": True}, "first-one.seconds is True"),
        ({"seconds": 10**400}, "first-one.seconds is 1000"),
        ({"machine": []}, "first-one.machine is []"),
        ({"git_revision": 3}, "first-one.git_revision is 3"),
    ],
)
def test_damaged_records_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "first-one.json"
    write_json(path, {**make_record(FIRST, make_outcome()).to_dict(), **change})
    with pytest.raises(ExselError) as refused:
        ExperimentRecord.read(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_curve_has_a_value_for_each_place() -> None:
    with pytest.raises(ValueError, match="'baseline' has not as many values as places"):
        Curve(label="baseline", x=(1.0, 2.0), y=(1.0,))


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    write_json(path, [1, 2])
    with pytest.raises(ExselError, match="no record"):
        ExperimentRecord.read(path)
    path.write_text("{")
    with pytest.raises(ExselError, match="not JSON"):
        ExperimentRecord.read(path)
