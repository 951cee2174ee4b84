"""The page of a comparison: gathers what its template shows. Needs matplotlib and Jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from exsel.report import comparison, comparison_charts, formatting, templates
from exsel.report.answer_table import ANSWER_HEADINGS, answer_rows
from exsel.report.facts import facts
from exsel.report.formatting import number
from exsel.report.headline import Row, verdict
from exsel.report.picture import page_picture
from exsel.report.selection import Moved, moved_temperatures, selection_notes


class GainTile(NamedTuple):
    """One of the large numbers under the headline."""

    value: str
    label: str
    interval: str
    variant: str


class Continuation(NamedTuple):
    """What follows a prompt in a variant's words; without a variant, in the text itself."""

    variant: str
    text: str


class Prompt(NamedTuple):
    """A prompt out of the validation text, and how the text and each variant go on."""

    text: str
    continuations: list[Continuation]


_FACTS = {"data": "Data", "model": "Model", "machine": "Machine and versions", "config": "Configuration"}
_TEMPERATURE_HEADINGS = {
    "variant": "Variant",
    "kind": "Of",
    "mean": "Mean τ",
    "moved": "Moved",
    "over_tokens": "Deviation over tokens",
    "over_heads": "Deviation over heads",
}
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
    rows = comparison.summary_cells(results)
    headings = comparison.table_headings(results)
    keys = [key for key in headings if rows and key in rows[0]]
    losses = [comparison.mean(row, "loss") for row in comparison.entries(results, "variants")]
    lowest = min((loss for loss in losses if loss is not None), default=None)
    charts = comparison_charts.comparison_charts(results)
    return {
        "headline": outcome.sentence,
        "headline_note": outcome.note,
        "tiles": _tiles(outcome.row),
        "subject": _subject(results),
        "looks": looks,
        "headings": headings,
        "gains": [key for key in keys if key not in comparison.COSTS],
        "costs": [key for key in keys if key == "variant" or key in comparison.COSTS],
        "rows": rows,
        "lowest": [loss is not None and loss == lowest for loss in losses],
        "intervals": comparison.interval_sentence(results),
        "sweep_ends": comparison.sweep_ends(results),
        "pictures": {name: [page_picture(chart, looks) for chart in group] for name, group in charts.items()},
        "prompts": _prompts(results),
        "temperature_headings": _TEMPERATURE_HEADINGS,
        "temperatures": [_temperature(each) for each in moved_temperatures(results)],
        "selection_notes": selection_notes(results),
        "answers": answer_rows(results),
        "answer_headings": ANSWER_HEADINGS,
        "facts": facts(results, _FACTS),
        "run_headings": dict(enumerate(_RUN_HEADINGS)),
        "runs": [_run(run) for key in ("runs", "choosing_runs") for run in comparison.entries(results, key)],
        "command": formatting.plain(results.get("command")),
        "revision": formatting.plain(results.get("git_revision")),
        "version": formatting.plain(results.get("exsel_version")),
        "started": formatting.moment(results.get("started")),
    }


def _prompts(results: Mapping[str, Any]) -> list[Prompt]:
    """The samples of the first run of each variant, by prompt."""
    prompts: dict[str, Prompt] = {}
    for variant, runs in comparison.runs_of_variants(results).items():
        for sample in comparison.entries(runs[0], "samples"):
            prompt, text, continuation = (_printable(sample.get(key)) for key in ("prompt", "text", "continuation"))
            shown = prompts.setdefault(prompt, Prompt(prompt, [Continuation("", text)]))
            shown.continuations.append(Continuation(variant, continuation))
    return list(prompts.values())


def _printable(text: object) -> str:
    """A model's text without characters that would show as nothing, or steer."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in str(text))


def _tiles(row: Row | None) -> list[GainTile]:
    """The numbers of the variant that the headline speaks of, with their intervals."""
    if row is None:
        return []
    name, reach = comparison.variant_name(row), comparison.section(row, "reach")
    cost = comparison.section(row, "step_cost")
    tiles = []
    difference = comparison.read_estimate(row, "difference")
    if difference is not None:
        label = "in final validation loss"
        tiles.append(GainTile(formatting.signed(difference.mean, 3), label, comparison.plus_minus(difference, 3), name))
    for found, label in (
        (comparison.read_estimate(reach, "tokens_ratio"), "of the baseline's tokens to get to its final loss"),
        (comparison.read_estimate(reach, "time_ratio"), "of the baseline's time to get to its final loss"),
        (comparison.read_estimate(cost, "ratio"), "of the baseline's time for a step"),
    ):
        if found is not None:
            tiles.append(GainTile(formatting.ratio(found.mean), label, comparison.ratio_range(found), name))
    return [tile if tile.interval else tile._replace(interval="one seed: no interval") for tile in tiles]


def _subject(results: Mapping[str, Any]) -> list[str]:
    """What was compared on what, for the line over the headline; only what the results hold."""
    model, data, config = (comparison.section(results, key) for key in ("model", "data", "config"))
    tokens = number(config.get("tokens"))
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
    if tokens is not None:
        parts.append(f"{formatting.compact(tokens)} tokens a run")
    seeds = comparison.seed_count(results)
    if seeds:
        parts.append("1 seed" if seeds == 1 else f"{seeds} seeds")
    return parts


def _temperature(moved: Moved) -> dict[str, comparison.Cell]:
    return {
        name: comparison.Cell(value if isinstance(value, str) else formatting.fixed(value))
        for name, value in moved._asdict().items()
    }


def _run(run: Mapping[str, Any]) -> dict[int, comparison.Cell]:
    cells = (
        comparison.variant_name(run),
        formatting.plain(run.get("seed")).replace(",", ""),
        formatting.learning_rate(run.get("learning_rate")),
        formatting.fixed(run.get("loss")),
        formatting.fixed(run.get("bits_per_byte")),
        formatting.count(run.get("steps")),
        formatting.compact(run.get("tokens")),
        formatting.duration(run.get("train_seconds")),
        formatting.duration(run.get("compile_seconds")),
        formatting.milliseconds(run.get("ms_per_step")),
        formatting.memory(run.get("peak_memory_bytes")),
        formatting.plain(run.get("directory")),
    )
    return {place: comparison.Cell(cell) for place, cell in enumerate(cells)}
