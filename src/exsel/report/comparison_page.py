"""The page of a comparison: gathers what its template shows. Needs matplotlib and Jinja2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exsel.report import comparison, comparison_charts, formatting, templates
from exsel.report.formatting import number
from exsel.report.headline import Row, verdict
from exsel.report.picture import page_svg
from exsel.report.selection import moved_temperatures, selection_notes

_FACTS = {"data": "Data", "model": "Model", "machine": "Machine and versions", "config": "Configuration"}
_TEMPERATURE_HEADINGS = ("Variant", "Of", "Mean τ", "Moved", "Deviation over tokens", "Deviation over heads")
# The columns of the table of runs: what each shows of a run, and how.
_RUN_COLUMNS: Mapping[str, tuple[str, Callable[[object], str]]] = {
    "Variant": ("variant", formatting.plain),
    "Seed": ("seed", lambda seed: formatting.plain(seed).replace(",", "")),
    "Learning rate": ("learning_rate", formatting.learning_rate),
    "Loss": ("loss", formatting.fixed),
    "Bits per byte": ("bits_per_byte", formatting.fixed),
    "Steps": ("steps", formatting.count),
    "Tokens": ("tokens", formatting.compact),
    "Training": ("train_seconds", formatting.duration),
    "Compiling": ("compile_seconds", formatting.duration),
    "ms/step": ("ms_per_step", formatting.three_digits),
    "Peak memory": ("peak_memory_bytes", formatting.memory),
    "Folder": ("directory", formatting.plain),
}


def render_comparison(results: Mapping[str, Any]) -> str:
    """Return the report as one HTML document; see ``exsel.report.render_report``."""
    return templates.environment("exsel.report").get_template("comparison.html.j2").render(_context(results))


def _context(results: Mapping[str, Any]) -> dict[str, Any]:
    outcome = verdict(results)
    looks = comparison_charts.comparison_looks(results)
    rows = comparison.summary_cells(results)
    headings = comparison.table_headings(results)
    keys = [key for key in headings if rows and key in rows[0]]
    runs = [run for key in ("runs", "choosing_runs") for run in comparison.entries(results, key)]
    losses = [comparison.mean(row, "loss") for row in comparison.entries(results, "variants")]
    lowest = min((loss for loss in losses if loss is not None), default=None)
    charts = comparison_charts.comparison_charts(results)
    return {
        "headline": outcome.sentence,
        "headline_note": outcome.note,
        "tiles": [] if outcome.row is None else _tiles(outcome.row),
        "judged": outcome.row and comparison.variant_name(outcome.row),
        "subject": _subject(results),
        "looks": looks,
        "gains": {key: headings[key] for key in keys if key not in comparison.COSTS},
        "costs": {key: headings[key] for key in keys if key == "variant" or key in comparison.COSTS},
        "rows": rows,
        "lowest": [loss is not None and loss == lowest for loss in losses],
        "intervals": comparison.interval_sentence(results),
        "sweep_ends": comparison.sweep_ends(results),
        "pictures": {name: [(chart, page_svg(chart, looks)) for chart in group] for name, group in charts.items()},
        "prompts": _prompts(results),
        "temperatures": [
            {
                heading: comparison.Cell(value if isinstance(value, str) else formatting.fixed(value))
                for heading, value in zip(_TEMPERATURE_HEADINGS, moved, strict=True)
            }
            for moved in moved_temperatures(results)
        ],
        "selection_notes": selection_notes(results),
        "answers": comparison.answer_rows(results),
        "facts": templates.facts(results, _FACTS),
        "runs": [
            {heading: comparison.Cell(show(run.get(key))) for heading, (key, show) in _RUN_COLUMNS.items()}
            for run in runs
        ],
        "command": formatting.plain(results.get("command")),
        "revision": formatting.plain(results.get("git_revision")),
        "version": formatting.plain(results.get("exsel_version")),
        "started": formatting.moment(results.get("started")),
    }


def _prompts(results: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """By prompt, how the text itself goes on (under no name) and how each variant's first run does, under its name."""
    prompts: dict[str, list[tuple[str, str]]] = {}
    for variant, runs in comparison.runs_of_variants(results).items():
        for sample in comparison.entries(runs[0], "samples"):
            prompt, text, continuation = (_printable(sample.get(key)) for key in ("prompt", "text", "continuation"))
            prompts.setdefault(prompt, [("", text)]).append((variant, continuation))
    return prompts


def _printable(text: object) -> str:
    """A model's text without characters that would show as nothing, or steer."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in str(text))


def _tiles(row: Row) -> list[tuple[str, str, str]]:
    """The large numbers under the headline, each with what it is and its interval."""
    reach, cost = comparison.section(row, "reach"), comparison.section(row, "step_cost")
    tiles = []
    difference = comparison.read_estimate(row, "difference")
    if difference is not None:
        interval = comparison.plus_minus(difference, 3)
        tiles.append((formatting.signed(difference.mean, 3), "in final validation loss", interval))
    for found, label in (
        (comparison.read_estimate(reach, "tokens_ratio"), "of the baseline's tokens to get to its final loss"),
        (comparison.read_estimate(reach, "time_ratio"), "of the baseline's time to get to its final loss"),
        (comparison.read_estimate(cost, "ratio"), "of the baseline's time for a step"),
    ):
        if found is not None:
            tiles.append((formatting.ratio(found.mean), label, comparison.ratio_range(found)))
    return [(value, label, interval or "one seed: no interval") for value, label, interval in tiles]


def _subject(results: Mapping[str, Any]) -> list[str]:
    """What was compared on what, for the line over the headline; only what the results hold."""
    model, data, config = (comparison.section(results, key) for key in ("model", "data", "config"))
    parts = []
    if model.get("name"):
        size = number(model.get("parameters"))
        name = f"{formatting.plain(model['name'])} model"
        if config.get("source"):
            new = ", new parameters alone" if config.get("train") == "new" else ""
            name = f"{Path(formatting.plain(config['source'])).name}, trained on{new}"
        parts.append(name + (f", {formatting.compact(size)} parameters" if size is not None else ""))
    if data.get("name"):
        parts.append(formatting.plain(data["name"]))
    if (tokens := number(config.get("tokens"))) is not None:
        parts.append(f"{formatting.compact(tokens)} tokens a run")
    if seeds := comparison.seed_count(results):
        parts.append("1 seed" if seeds == 1 else f"{seeds} seeds")
    return parts
