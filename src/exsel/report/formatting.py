"""Values of ``results.json`` as short strings. A value that is missing or not finite is always a dash."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec

MISSING = "–"
_Options = ParamSpec("_Options")


def number(value: object) -> float | None:
    """Return ``value`` as a float, or ``None`` when it is not a finite number (a bool is not one)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _of_number(show: Callable[Concatenate[float, _Options], str]) -> Callable[Concatenate[object, _Options], str]:
    """Let a function of a number take any value, and write a minus sign for a hyphen."""

    @functools.wraps(show)
    def shown(value: object, /, *args: _Options.args, **options: _Options.kwargs) -> str:
        amount = number(value)
        return MISSING if amount is None else show(amount, *args, **options).replace("-", "−")

    return shown


@_of_number
def count(amount: float) -> str:
    """``1234`` → ``1,234``."""
    return f"{amount:,.0f}"


@_of_number
def compact(amount: float) -> str:
    """``1234567`` → ``1.23M``: three digits and a unit, for counts of tokens."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= limit * 0.9995:
            return f"{three_digits(amount / limit)}{unit}"
    return f"{amount:.0f}"


@_of_number
def three_digits(amount: float) -> str:
    """``1.234`` → ``1.23``, ``12.34`` → ``12.3``, ``1234.5`` → ``1,234``."""
    digits = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:,.{digits}f}"


@_of_number
def percent(amount: float) -> str:
    """``0.0042`` → ``0.0042%``; two significant digits below one per cent, none at exactly zero."""
    if amount == 0:
        return "0%"
    digits = 2 if abs(amount) >= 1 else 1 - math.floor(math.log10(abs(amount)))
    return f"{amount:.{digits}f}%"


@_of_number
def fixed(amount: float, digits: int = 4) -> str:
    """``1.66123`` → ``1.6612``."""
    return f"{amount:.{digits}f}"


@_of_number
def signed(amount: float, digits: int = 4) -> str:
    """``-0.29`` → ``−0.2900`` and ``0.02`` → ``+0.0200``; what rounds to zero has no sign."""
    shown = f"{amount:+.{digits}f}"
    return shown if float(shown) else shown[1:]


@_of_number
def ratio(amount: float) -> str:
    """``0.584`` → ``0.58×``."""
    return f"{amount:.2f}×"


@_of_number
def duration(amount: float) -> str:
    """Seconds as ``52.3 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if amount < 99.95:
        return f"{three_digits(amount)} s"
    whole, minutes = round(amount), round(amount / 60)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def time_left(seconds: float) -> str:
    """``about 25 s left``, ``about 6 min left``, ``about 2 h 05 min left``: no more digits than an estimate has."""
    if seconds < 57.5:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min left" if minutes < 60 else f"about {minutes // 60:,} h {minutes % 60:02d} min left"


@_of_number
def memory(amount: float) -> str:
    """Bytes as ``812 MiB`` or, from 10 GiB on, ``31.2 GiB``."""
    mebibytes = amount / 2**20
    return f"{mebibytes:,.0f} MiB" if mebibytes < 10 * 1024 else f"{three_digits(mebibytes / 1024)} GiB"


def learning_rate(value: object) -> str:
    """``0.003`` → ``3e-3``."""
    amount = number(value)
    if amount is None:
        return MISSING
    mantissa, exponent = f"{amount:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def moment(value: object) -> str:
    """An ISO 8601 time as ``22 November 2026, 08:00 UTC``; another text stays as it is."""
    if not isinstance(value, str) or not value:
        return MISSING
    try:
        time = datetime.fromisoformat(value).astimezone(UTC)
    except ValueError:
        return value
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def plain(value: Any) -> str:
    """Any JSON value in words: the set-up lists show keys that this version may not know."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-") if math.isfinite(value) else MISSING
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or MISSING
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(item)}" for key, item in value.items()) or MISSING
    return str(value)
