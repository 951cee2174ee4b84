from __future__ import annotations

from bench.records import record, row
from exsel.bench.table import HEADINGS, gaps, ratio_with_quartiles, table_rows


def test_a_line_a_contender() -> None:
    lines = table_rows(record()["rows"])
    assert len(lines) == 12
    ours = lines[3]
    assert ours["contender"] == "exsel sdpa"
    assert ours["whole"] == "1.030× (1.020–1.050)"
    assert ours["ms"] == "10.3"
    assert [line["case"] for line in lines if line["case"]] == [
        "attention 1.4b, 2 × 2048 tokens",
        "attention 1.4b, 2 × 4096 tokens",
    ]
    assert "peak" not in ours  # nobody measured it
    assert set(ours) <= set(HEADINGS)


def test_what_was_not_measured_is_a_dash_with_its_reason() -> None:
    rows = record()["rows"]
    (line,) = [line for line in table_rows(rows[:6]) if line["contender"] == "compiled dot"]
    assert {line[key] for key in ("ms", "forward", "backward", "whole", "saved")} == {"–"}
    assert gaps(rows) == [
        "compiled dot, not measured (attention 1.4b, 2 × 2048 tokens and 1 more): there is no compiler"
    ]


def test_no_ratio_without_a_measurement() -> None:
    assert ratio_with_quartiles({}) == "–"
    assert gaps([row("stock", "baseline", 1.0)]) == []
