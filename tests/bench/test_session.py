from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from exsel.bench import attention
from exsel.bench.cases import Case, Shape
from exsel.bench.measuring import CpuClock, Work
from exsel.bench.session import Plan, jobs, run

PLAN = Plan(
    subjects=("attention",),
    device="cpu",
    dtype="float32",
    shapes=(Shape("2x1x16", 2, 1, 16),),
    seq_lens=(16, 32),
    contenders=("eager normalize", "compiled normalize"),
    rounds=2,
)


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender that is refused."""
    monkeypatch.setattr("exsel.bench.measuring.can_compile", lambda: False)


#: What readers of ``bench.json`` may rely on.
RECORD = {
    "format": int,
    "command": str,
    "device": str,
    "dtype": str,
    "partial": bool,
    "machine": dict,
    "git_revision": (str, type(None)),
    "rows": list,
}
ROW = {
    "subject": str,
    "shape": str,
    "num_heads": int,
    "num_kv_heads": int,
    "head_dim": int,
    "tokens": int,
    "batch": int,
    "group": str,
    "contender": str,
    "floor": str,
    "rounds": int,
    "passes": dict,
    "saved_bytes": (int, type(None)),
    "peak_bytes": (int, type(None)),
    "refused": (str, type(None)),
}
PASS = {"ms_median": float, "ratio_median": float, "ratio_quartiles": list}


def assert_schema(value: dict[str, Any], schema: dict[str, Any]) -> None:
    assert set(schema) <= set(value)
    for name, kind in schema.items():
        assert isinstance(value[name], kind), name


def measure(said: list[str], clock: CpuClock | None = None) -> tuple[dict[str, Any], list[int]]:
    kept: list[int] = []
    record = run(
        PLAN,
        jobs(PLAN),
        command="exsel bench",
        say=said.append,
        on_case=lambda record: kept.append(len(record["rows"])),
        clock=clock,
    )
    return record, kept


def test_the_record(said: list[str]) -> None:
    record, kept = measure(said)
    assert_schema(record, RECORD)
    assert not record["partial"]
    for row in record["rows"]:
        assert_schema(row, ROW)
        assert (row["refused"] is None) == bool(row["passes"])
        for summary in row["passes"].values():
            assert_schema(summary, PASS)
            low, high = summary["ratio_quartiles"]
            assert low <= summary["ratio_median"] <= high
    assert kept == [5, 10]  # after each case
    first, second = [text for text in said if text.startswith("attention")]
    assert first == "attention 2x1x16, 256 × 16 tokens (case 1 of 2)"
    assert re.fullmatch(r"attention 2x1x16, 128 × 32 tokens \(case 2 of 2; about \d+(\.\d+)? s left\)", second)


class Interrupted(CpuClock):
    """Ctrl-C at some call."""

    def __init__(self, after: int) -> None:
        super().__init__(least=0)
        self._left = after

    def time(self, work: Work) -> dict[str, float]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().time(work)


# A case: one call to calibrate, then two rounds of the three that run.
@pytest.mark.parametrize(("after", "expected"), [(1 + 6 + 1 + 4, [2] * 3 + [1] * 3), (1 + 6 + 1 + 1, [2] * 3), (2, [])])
def test_an_interruption_keeps_what_was_measured(after: int, expected: list[int], said: list[str]) -> None:
    record, kept = measure(said, Interrupted(after))
    assert record["partial"]
    assert [row["rounds"] for row in record["rows"] if row["refused"] is None] == expected
    assert kept[-1] == len(record["rows"])


def test_tensors_that_do_not_fit_are_a_gap(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = attention.contenders

    def contenders(case: Case, *rest: Any, **options: Any) -> Any:
        if case.tokens == 16:
            raise torch.OutOfMemoryError("80 GiB")
        return original(case, *rest, **options)

    monkeypatch.setattr(attention, "contenders", contenders)
    record, _ = measure(said)
    assert not record["partial"]
    assert_schema(record["rows"][0], ROW)
    assert record["rows"][0]["refused"] == "out of memory"
    assert {row["tokens"] for row in record["rows"] if row["refused"] is None} == {32}
