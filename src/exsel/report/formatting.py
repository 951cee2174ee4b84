"""Values of ``results.json`` as short strings. A value that is missing or not finite is always a dash."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

MISSING = "–"


def number(value: object) -> float | None:
    """Return ``value`` as a float, or ``None`` when it is not a finite number (a bool is not one)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def count(value: object) -> str:
    """``1234`` → ``1,234``."""
    amount = number(value)
    return MISSING if amount is None else f"{amount:,.0f}".replace("-", "−")


def compact(value: object) -> str:
    """``1234567`` → ``1.23M``: three digits and a unit, for counts of tokens."""
    amount = number(value)
    if amount is None:
        return MISSING
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if amount >= limit * 0.9995:
            return f"{three_digits(amount / limit)}{unit}"
    return f"{amount:.0f}"


def three_digits(amount: float) -> str:
    """``1.234`` → ``1.23``, ``12.34`` → ``12.3``, ``1234.5`` → ``1,234``."""
    size = abs(amount)
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{amount:,.{digits}f}".replace("-", "−")


def percent(value: object) -> str:
    """``0.0042`` → ``0.0042%``; two significant digits below one per cent, none at exactly zero."""
    amount = number(value)
    if amount is None:
        return MISSING
    if amount == 0:
        return "0%"
    digits = 2 if abs(amount) >= 1 else 1 - math.floor(math.log10(abs(amount)))
    return f"{amount:.{digits}f}%".replace("-", "−")


def fixed(value: object, digits: int = 4) -> str:
    """``1.66123`` → ``1.6612``."""
    amount = number(value)
    return MISSING if amount is None else f"{amount:.{digits}f}".replace("-", "−")


def signed(value: object, digits: int = 4) -> str:
    """``-0.29`` → ``−0.2900`` and ``0.02`` → ``+0.0200``; what rounds to zero has no sign."""
    amount = number(value)
    if amount is None:
        return MISSING
    shown = f"{amount:+.{digits}f}"
    return (shown if float(shown) else shown[1:]).replace("-", "−")


def ratio(value: object) -> str:
    """``0.584`` → ``0.58×``."""
    amount = number(value)
    return MISSING if amount is None else f"{amount:.2f}×"


def milliseconds(value: object) -> str:
    """``261.34`` → ``261``, ``26.13`` → ``26.1``: three digits, the unit stands in the heading."""
    amount = number(value)
    return MISSING if amount is None else three_digits(amount)


def duration(value: object) -> str:
    """Seconds as ``52.3 s``, ``4 min 12 s``, ``2 h 05 min``."""
    amount = number(value)
    if amount is None:
        return MISSING
    if amount < 99.95:
        return f"{three_digits(amount)} s"
    whole = round(amount)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(amount / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def memory(value: object) -> str:
    """Bytes as ``812 MiB`` or, from 10 GiB on, ``31.2 GiB``."""
    amount = number(value)
    if amount is None:
        return MISSING
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
        time = datetime.fromisoformat(value)
    except ValueError:
        return value
    if time.tzinfo is None:
        return f"{time.day} {time:%B %Y, %H:%M}"
    time = time.astimezone(UTC)
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
