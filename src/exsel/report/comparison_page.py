"""The page of a comparison: gathers what its template shows. Needs matplotlib and Jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from exsel.report import comparison, comparison_charts, formatting, templates
from exsel.report.facts import facts
from exsel.report.formatting import number
from exsel.report.headline import Row, verdict
from exsel.report.picture import page_picture


class GainTile(NamedTuple):
    """One of the large numbers under the headline."""

    value: str
    label: str
    variant: str


_FACTS = {"data": "Data", "model": "Model", "machine": "Machine and versions", "config": "Configuration"}
_RUN_HEADINGS = (
    "Variant",
    "Seed",
    "Learning rate",
    "Loss",
    "Bits per byte",
    "Steps",
    "Tokens",
    "Training",
    "Compiling",
    "ms/step",
    "Peak memory",
    "Folder",
)


def render_comparison(results: Mapping[str, Any]) -> str:
    """Return the report as one HTML document; see ``exsel.report.render_report``."""
    return templates.environment("exsel.report").get_template("comparison.html.j2").render(_context(results))


def _context(results: Mapping[str, Any]) -> dict[str, Any]:
    outcome = verdict(results)
    looks = comparison_charts.comparison_looks(results)
    similarity, sweep = comparison_charts.similarity_chart(results), comparison_charts.sweep_chart(results)
    rows = comparison.summary_cells(results)
    keys = list(rows[0]) if rows else []
    losses = [comparison.mean(row, "loss") for row in comparison.entries(results, "variants")]
    lowest = min((loss for loss in losses if loss is not None), default=None)
    seeds = comparison.seed_count(results)
    return {
        "headline": outcome.sentence,
        "headline_note": outcome.note,
        "tiles": _tiles(outcome.per_token, outcome.per_second, seeds),
        "subject": _subject(results),
        "looks": looks,
        "headings": [(key, comparison.HEADINGS[key]) for key in keys],
        "rows": rows,
        "lowest": [loss is not None and loss == lowest for loss in losses],
        "spread": comparison.spread_sentence(results),
        "sweep_note": comparison.is_sweep(results),
        "loss_pictures": [page_picture(chart, looks) for chart in comparison_charts.loss_charts(results)],
        "similarity": similarity and page_picture(similarity, looks),
        "sweep": sweep and page_picture(sweep, looks),
        "facts": facts(results, _FACTS),
        "run_headings": _RUN_HEADINGS,
        "runs": [_run(run) for run in comparison.entries(results, "runs")],
        "command": formatting.plain(results.get("command")),
        "revision": formatting.plain(results.get("git_revision")),
        "version": formatting.plain(results.get("exsel_version")),
        "started": formatting.moment(results.get("started")),
    }


def _tiles(per_token: Row | None, per_second: Row | None, seeds: int) -> list[GainTile]:
    if per_token is None or per_second is None:
        return []
    tiles = []
    for row, key, what in ((per_token, "tokens", "tokens"), (per_second, "seconds", "time")):
        share = comparison.reached(row, f"{key}_ratio")
        if share is not None:
            label = f"of the baseline's {what} to get to the same loss"
            tiles.append(GainTile(formatting.ratio(share), label, comparison.variant_name(row)))
    difference = comparison.mean(per_token, "difference")
    if difference is not None:
        deviation = comparison.spread(per_token, "difference")
        label = "in final validation loss"
        if deviation is not None:
            label += f", ±\u00a0{formatting.fixed(deviation, 3)} over {seeds} seeds"
        elif seeds == 1:
            label += "; one seed: no spread"
        tiles.append(GainTile(formatting.signed(difference, 3), label, comparison.variant_name(per_token)))
    return tiles


def _subject(results: Mapping[str, Any]) -> list[str]:
    """What was compared on what, for the line over the headline; only what the results hold."""
    model, data, config = (comparison.section(results, key) for key in ("model", "data", "config"))
    tokens = number(config.get("tokens"))
    parts = []
    if model.get("name"):
        size = number(model.get("parameters"))
        name = formatting.plain(model["name"])
        parts.append(f"{name} model" + (f", {formatting.compact(size)} parameters" if size is not None else ""))
    if data.get("name"):
        parts.append(formatting.plain(data["name"]))
    if tokens is not None:
        parts.append(f"{formatting.compact(tokens)} tokens a run")
    seeds = comparison.seed_count(results)
    if seeds:
        parts.append("1 seed" if seeds == 1 else f"{seeds} seeds")
    return parts


def _run(run: Mapping[str, Any]) -> list[str]:
    step = run.get("ms_per_step")
    return [
        comparison.variant_name(run),
        formatting.plain(run.get("seed")),
        formatting.learning_rate(run.get("learning_rate")),
        formatting.fixed(run.get("loss")),
        formatting.fixed(run.get("bits_per_byte")),
        formatting.count(run.get("steps")),
        formatting.compact(run.get("tokens")),
        formatting.duration(run.get("train_seconds")),
        formatting.duration(run.get("compile_seconds")),
        formatting.milliseconds(step.get("median") if isinstance(step, Mapping) else step),
        formatting.memory(run.get("peak_memory_bytes")),
        formatting.plain(run.get("directory")),
    ]
