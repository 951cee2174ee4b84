from __future__ import annotations

from typing import Any

import pytest
import torch

import exsel
from exsel.bench import attention
from exsel.bench.attention import check_output, compiled
from exsel.bench.cases import Case, Shape
from exsel.bench.measuring import Contender, CpuClock, Refused, Work, measure

CPU = torch.device("cpu")
UNCOMPILED = ("eager normalize", "exsel sdpa", "exsel reference")
ALL = (*UNCOMPILED, "compiled normalize")


def case(heads: int = 4, kv_heads: int = 2) -> Case:
    return Case(shape=Shape("small", heads, kv_heads, 16), tokens=32, batch=2, device=CPU, dtype=torch.float32)


def rows_of(contenders: list[Contender], said: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    rows = measure(contenders, clock=CpuClock(least=0), device=CPU, rounds=1, say=said.append)
    return {(row["group"], row["contender"]): row for row in rows}


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exsel.bench.measuring.can_compile", lambda: False)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_everything_is_measured_but_what_refuses(kv_heads: int, said: list[str]) -> None:
    rows = rows_of(attention.contenders(case(4, kv_heads), CpuClock(), ALL), said)
    assert next(iter(rows)) == ("baseline", "stock")
    assert {name for name, row in rows.items() if row["refused"] is None} == {
        ("baseline", "stock"),
        *((group, name) for group in ("exclusive", "exclusive+selective") for name in UNCOMPILED),
    }
    for group in ("exclusive", "exclusive+selective"):
        refused = rows[group, "compiled normalize"]
        assert "compiler" in refused["refused"]
        assert refused["passes"] == {}
    assert set(rows["exclusive", "exsel sdpa"]["passes"]) == {"forward", "backward", "both"}
    assert rows["exclusive", "exsel sdpa"]["saved_bytes"] > 0


@pytest.mark.usefixtures("no_compiler")
def test_decoding(said: list[str]) -> None:
    rows = rows_of(attention.contenders(case(), CpuClock(), ALL, decode=True), said)
    assert list(rows["batch 2", "exsel sdpa"]["passes"]) == ["decode"]
    assert rows["batch 2", "stock"]["passes"]["decode"]["ratio_median"] == 1
    assert "compiler" in rows["batch 2", "compiled normalize"]["refused"]


def test_a_wrong_result_has_no_time(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = exsel.attention

    def wrong(*tensors: Any, exclusive: bool, **options: Any) -> Any:
        return right(*tensors, exclusive=False, **options)

    monkeypatch.setattr("exsel.functional.attention", wrong)
    rows = rows_of(attention.contenders(case(), CpuClock(), ("exsel sdpa",)), said)
    assert rows["exclusive", "exsel sdpa"]["refused"].startswith("wrong: ")
    assert rows["exclusive", "exsel sdpa"]["passes"] == {}


def test_nan_is_wrong() -> None:
    with pytest.raises(Refused, match="wrong"):
        check_output(Work(forward=lambda: torch.full((3,), torch.nan)), torch.zeros(3), 1.0)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_compiled_forms_are_gaps() -> None:
    with pytest.raises(Refused, match="compiler"):
        compiled(lambda x: x)
