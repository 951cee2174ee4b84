from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.conftest import ScriptedClock, idle
from exsel.bench.measuring import FEWEST_ROUNDS, MOST_ROUNDS, Clock, Contender, Refused, Stop, measure, summarise_rounds

CPU = torch.device("cpu")
FLOOR = ("all", "floor")


def contender(name: str, error: BaseException | None = None) -> Contender:
    def prepare() -> Any:
        if error is not None:
            raise error
        return idle(name)

    return Contender(name=name, group="all", floor=FLOOR, prepare=prepare, details={"colour": "red"})


def rows_of(
    script: dict[str, list[Any]], contenders: list[Contender], said: list[str], rounds: int | None = 3
) -> dict[str, dict[str, Any]]:
    clock: Clock = ScriptedClock(script)
    rows = measure(contenders, clock=clock, device=CPU, rounds=rounds, say=said.append)
    return {row["contender"]: row for row in rows}


def test_ratios_are_taken_within_a_round(said: list[str]) -> None:
    """The machine is slower from round to round: the ratio of the medians would be 2."""
    script = {"floor": [1.0, 2.0, 8.0], "ours": [1.5, 4.0, 12.0]}
    row = rows_of(script, [contender("floor"), contender("ours")], said)["ours"]
    assert row["passes"]["step"]["ratio_median"] == 1.5
    assert row["passes"]["step"]["ratio_quartiles"] == [1.5, 1.75]
    assert row["passes"]["step"]["ms_median"] == 4000
    assert row["rounds"] == 3
    assert said[-1] == "  measuring, 3 rounds at most"


def test_one_round_has_no_spread() -> None:
    assert summarise_rounds([3.0], [2.0]) == {"ms_median": 3000, "ratio_median": 1.5, "ratio_quartiles": [1.5, 1.5]}


def test_a_refused_contender_is_a_gap_with_its_reason(said: list[str]) -> None:
    contenders = [contender("floor"), contender("no", Refused("not on Sundays")), contender("ours")]
    rows = rows_of({"floor": [1.0], "ours": [2.0]}, contenders, said, rounds=1)
    assert rows["no"]["refused"] == "not on Sundays"
    assert rows["no"]["passes"] == {}
    assert rows["no"]["rounds"] == 0
    assert rows["ours"]["passes"]["step"]["ratio_median"] == 2.0
    assert rows["ours"]["refused"] is None
    assert rows["ours"]["colour"] == "red"


def test_out_of_memory_is_a_gap(said: list[str]) -> None:
    contenders = [contender("floor"), contender("large", torch.OutOfMemoryError("80 GiB"))]
    assert rows_of({"floor": [1.0]}, contenders, said, rounds=1)["large"]["refused"] == "out of memory"


def test_without_its_floor_there_is_no_ratio(said: list[str]) -> None:
    contenders = [contender("floor", Refused("absent")), contender("ours")]
    rows = rows_of({"ours": [1.0]}, contenders, said, rounds=1)
    assert rows["ours"]["refused"] == "its floor, floor, was not measured"


def test_another_error_is_no_gap(said: list[str]) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        rows_of({"floor": [1.0]}, [contender("floor"), contender("ours", RuntimeError("a bug"))], said)


def test_an_interruption_keeps_whole_rounds(said: list[str]) -> None:
    script = {"floor": [1.0, 1.0, 1.0], "ours": [2.0, 4.0, KeyboardInterrupt()]}
    with pytest.raises(Stop) as stop:
        rows_of(script, [contender("floor"), contender("ours")], said, rounds=9)
    floor, ours = stop.value.rows
    assert (floor["rounds"], ours["rounds"]) == (2, 2)
    assert ours["passes"]["step"]["ratio_median"] == 3.0


def test_an_interruption_while_preparing_keeps_nothing(said: list[str]) -> None:
    with pytest.raises(Stop) as stop:
        rows_of({"floor": [1.0]}, [contender("floor"), contender("ours", KeyboardInterrupt())], said)
    assert stop.value.rows == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, MOST_ROUNDS["cpu"]), (1e9, FEWEST_ROUNDS)])
def test_rounds_by_the_time_they_take(
    seconds: float, expected: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: seconds * next(now))
    row = rows_of({"floor": [1.0] * 99}, [contender("floor")], said, rounds=None)["floor"]
    assert row["rounds"] == expected


def test_the_order_changes_from_round_to_round(said: list[str]) -> None:
    seen: list[str] = []

    class Clock(ScriptedClock):
        def time(self, work: Any) -> dict[str, float]:
            seen.append(work.name)
            return super().time(work)

    names = ["floor", "one", "two", "three"]
    clock = Clock({name: [1.0] * 5 for name in names})
    measure([contender(name) for name in names], clock=clock, device=CPU, rounds=5, say=said.append)
    rounds = [tuple(seen[start : start + 4]) for start in range(0, 20, 4)]
    assert all(sorted(each) == sorted(names) for each in rounds)
    assert len(set(rounds)) > 1


def test_what_compiles_is_said(said: list[str]) -> None:
    script = {"floor": [1.0], "compiled dot": [1.0]}
    rows_of(script, [contender("floor"), contender("compiled dot")], said, rounds=1)
    assert said[:2] == ["  preparing floor (all)", "  compiling compiled dot (all)"]
