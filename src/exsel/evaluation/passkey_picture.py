"""A heat map of passkey retrieval: a cell for each length and depth, the stronger the more keys were found."""

from __future__ import annotations

from pathlib import Path

from exsel.evaluation.retrieval import PasskeyResult
from exsel.report.charts import HeatMap
from exsel.report.picture import write_picture


def write_passkey_picture(result: PasskeyResult, path: Path) -> None:
    """Draw the accuracy by length and depth, as ``.svg`` for light and dark mode or ``.png`` on white."""
    drawn = HeatMap(
        name="passkey",
        title=f"Passkeys found, of {result.samples} in each field",
        x_label="length (tokens)",
        y_label="depth of the key",
        columns=tuple(f"{length:,}" for length in result.lengths),
        rows=tuple(f"{depth:.4g}" for depth in reversed(result.depths)),  # the beginning of the text is on top
        values=tuple(zip(*(reversed(row) for row in result.accuracy), strict=True)),
        scale=1.0,
        as_percent=True,
        caption=f"Share of passkeys found by length and depth: {result.mean:.0%} of all.",
    )
    write_picture(drawn, path)
