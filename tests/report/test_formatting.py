from __future__ import annotations

import math
from typing import Any

import pytest

from exsel.report import formatting


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (formatting.count, 1234567, "1,234,567"),
        (formatting.compact, 999, "999"),
        (formatting.compact, 999_600, "1.00M"),
        (formatting.compact, 1_234_567, "1.23M"),
        (formatting.compact, 2.5e9, "2.50B"),
        (formatting.percent, 0, "0%"),
        (formatting.percent, 0.2527, "0.25%"),
        (formatting.percent, 0.00213, "0.0021%"),
        (formatting.percent, 5.123, "5.12%"),
        (formatting.fixed, 1.66123, "1.6612"),
        (formatting.signed, -0.29, "−0.2900"),
        (formatting.signed, 0.02, "+0.0200"),
        (formatting.signed, -0.00001, "0.0000"),
        (formatting.ratio, 0.584, "0.58×"),
        (formatting.three_digits, 26.13, "26.1"),
        (formatting.duration, 52.34, "52.3 s"),
        (formatting.duration, 99.97, "1 min 40 s"),
        (formatting.duration, 252, "4 min 12 s"),
        (formatting.duration, 3599.7, "1 h 00 min"),
        (formatting.duration, 7500, "2 h 05 min"),
        (formatting.memory, 812 * 2**20, "812 MiB"),
        (formatting.memory, 31.2 * 2**30, "31.2 GiB"),
        (formatting.learning_rate, 0.003, "3e-3"),
        (formatting.learning_rate, 0.00015, "1.5e-4"),
        (formatting.moment, "2026-11-22T09:30:00+01:00", "22 November 2026, 08:30 UTC"),
        (formatting.moment, "this morning", "this morning"),
        (formatting.plain, True, "yes"),
        (formatting.plain, [1, 2.5, None], "1, 2.5, –"),
        (formatting.plain, {"a": {"b": 1e-5}}, "a: b: 1e-5"),
    ],
)
def test_values_are_shown_as_documented(show: Any, value: Any, expected: str) -> None:
    assert show(value) == expected


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "12", True])
def test_what_is_no_finite_number_is_a_dash(value: Any) -> None:
    for show in (
        formatting.count,
        formatting.compact,
        formatting.percent,
        formatting.fixed,
        formatting.signed,
        formatting.ratio,
        formatting.three_digits,
        formatting.duration,
        formatting.memory,
        formatting.learning_rate,
    ):
        assert show(value) == "–"
