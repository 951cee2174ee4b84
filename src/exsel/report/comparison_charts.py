"""The figures of a comparison as data, by the question that each answers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exsel.intervals import Estimate
from exsel.report import formatting
from exsel.report.charts import Chart, Curve, Reference
from exsel.report.comparison import (
    entries,
    evaluation_sets,
    mean,
    on_set,
    reached,
    read_estimate,
    runs_of_variants,
    section,
    variant_name,
)
from exsel.report.formatting import number
from exsel.report.looks import Look, looks_of_labels
from exsel.variants import BASELINE

Results = Mapping[str, Any]
Points = list[tuple[float, float]]

# What a row says of where the baseline's final loss was reached, by the x axis of its figure.
_PLACES = {"tokens": "tokens", "seconds": "wall_clock_seconds"}
_RATIOS = {"tokens": "tokens_ratio", "seconds": "wall_clock_ratio"}
# Of fewer seeds an interval is more than ten times as wide as their spread: a band of it hides everything.
_FEWEST_SEEDS = 3


def comparison_looks(results: Results) -> dict[str, Look]:
    """The look of each variant."""
    rows = [*entries(results, "variants"), *entries(results, "runs")]
    return looks_of_labels([list(dict.fromkeys(variant_name(row) for row in rows))])


def comparison_charts(results: Results) -> dict[str, list[Chart]]:
    """The figures by question, in the order in which these are asked; without those of which there is nothing."""
    found = {
        "help": [_loss_chart(results, "tokens")],
        "sure": [_difference_chart(results), _sweep_chart(results)],
        "cost": [_loss_chart(results, "seconds")],
        "position": _position_charts(results),
        "layer": [_similarity_chart(results)],
    }
    return {question: [chart for chart in charts if chart is not None] for question, charts in found.items()}


def _difference_chart(results: Results) -> Chart | None:
    """The difference to the baseline of each variant, on the validation text and on each evaluation set."""
    texts, curves = evaluation_sets(results), []
    for row in entries(results, "variants"):
        gaps = [read_estimate(part, "difference") for part in (row, *(on_set(row, name) for name in texts))]
        curves += _through(variant_name(row), enumerate(gaps), style="points")
    if not curves:
        return None
    has_intervals = all(curve.low is not None for curve in curves)
    return Chart(
        name="differences",
        title="Difference in final loss",
        x_label="",
        y_label="loss less the baseline's",
        curves=tuple(curves),
        categories=("validation", *texts),
        caption="Below 0 the variant is better. "
        + ("Strokes: 95% intervals; one that crosses 0 tells nothing." if has_intervals else "One seed: no interval."),
    )


def _through(label: str, points: Iterable[tuple[float | None, Estimate | None]], **style: Any) -> list[Curve]:
    """A curve through the points that have both numbers, from the left, unless there is none."""
    found = [(place, value) for place, value in points if place is not None and value is not None]
    found.sort(key=lambda point: point[0])
    return [Curve.of(label, *zip(*found, strict=True), **style)] if found else []


def _position_charts(results: Results) -> list[Chart | None]:
    """The loss by position, beyond the trained length where that was evaluated, its difference, and other texts'."""
    rows = entries(results, "variants")
    if rows and all(entries(row, "longer") for row in rows):
        key, caption, mark = "longer", "Dotted: the trained length.", number(section(results, "config").get("seq_len"))
    else:
        reasons = dict.fromkeys(section(run, "longer").get("reason") for run in entries(results, "runs"))
        said = "; ".join(str(reason) for reason in reasons if reason)
        key, caption, mark = "by_position", f"Not evaluated beyond the trained length: {said}." if said else "", None
    parts = {variant_name(row): entries(row, key) for row in rows}
    charts = [
        _position_chart("position", "Loss by position", "loss", parts, caption, mark),
        _position_chart("position-difference", "Difference by position", "difference", parts, caption, mark),
    ]
    for index, name in enumerate(evaluation_sets(results), start=1):
        parts = {variant_name(row): entries(on_set(row, name), "by_position") for row in rows}
        charts.append(_position_chart(f"position-{index}", f"Loss by position on {name}", "loss", parts))
    return charts


def _position_chart(
    name: str,
    title: str,
    key: str,
    parts: Mapping[str, Sequence[Results]],
    caption: str = "",
    mark: float | None = None,
) -> Chart | None:
    """A number by position, each point the mean over the positions up to the next; marked where training ended."""
    curves, seeds = [], 0
    for variant, buckets in parts.items():
        found = [(number(bucket.get("first")), read_estimate(bucket, key)) for bucket in buckets]
        curves += _through(variant, found)
        seeds = max((seeds, *(len(value.values) for _, value in found if value is not None)))
    if not curves:
        return None
    if 1 < seeds < _FEWEST_SEEDS:
        curves = [replace(curve, low=None, high=None) for curve in curves]
    is_difference = key == "difference"
    means = [value for curve in curves for value in curve.y] + ([0.0] if is_difference else [])
    room = 0.5 * (max(means) - min(means)) or 0.1
    low, high = min(means) - room, max(means) + room
    references = [Reference(y=0)] if is_difference else []
    references += [] if mark is None else [Reference(y=high, x=mark)]
    ends = [end for curve in curves for end in (*(curve.low or ()), *(curve.high or ()))]
    said = [caption] if caption else []
    if 1 < seeds < _FEWEST_SEEDS:
        said.append(f"Means of {seeds} seeds, without intervals: those of so few would fill the frame.")
    elif ends:
        is_cut = min(ends) < low or max(ends) > high
        said.append(f"Bands: 95% intervals{', some of which go on outside the frame' if is_cut else ''}.")
    return Chart(
        name=name,
        title=title,
        x_label="position in the sequence (mean up to the next)",
        y_label="loss less the baseline's" if is_difference else "loss",
        curves=tuple(curves),
        references=tuple(references),
        log_x=True,
        y_range=(low, high),
        caption=" ".join(said),
    )


def _similarity_chart(results: Results) -> Chart | None:
    """The attention similarity bias of each layer; ``None`` when no run measured it."""
    curves, gists = [], []
    for name, runs in runs_of_variants(results).items():
        before, output = _layers(runs, "before_exclusion"), _layers(runs, "output")
        curves += [_line(name, points, style) for points, style in ((before, "dashed"), (output, "line")) if points]
        if output:
            cosines = [y for _, y in output]
            ends = [formatting.fixed(end, 2).replace("−0.00", "0.00") for end in (min(cosines), max(cosines))]
            gists.append(f"{name} {' to '.join(dict.fromkeys(ends))}")
    if not curves:
        return None
    caption = [f"What reaches the output projection: {', '.join(gists)}."] if gists else []
    if any(curve.style == "dashed" for curve in curves):
        caption.append("Dashed, hollow markers: before the exclusion.")
    return Chart(
        name="similarity",
        title="Similarity in each layer",
        x_label="layer",
        y_label="mean cos(yᵢ, vᵢ)",
        curves=tuple(curves),
        references=(Reference(y=0),),
        caption=" ".join(caption),
    )


def _sweep_chart(results: Results) -> Chart | None:
    """The final loss against the learning rate, of the runs that chose it; ``None`` where only one was tried."""
    curves = []
    rows = entries(results, "sweep")
    for name in dict.fromkeys(map(variant_name, rows)):
        own = [row for row in rows if variant_name(row) == name]
        curves += _through(name, ((number(row.get("learning_rate")), read_estimate(row, "loss")) for row in own))
    if not curves:
        return None
    chosen = (
        f"{variant_name(row)} {formatting.learning_rate(row.get('learning_rate'))}" for row in rows if row.get("chosen")
    )
    return Chart(
        name="sweep",
        title="Final loss against learning rate",
        x_label="peak learning rate",
        y_label="final validation loss",
        curves=tuple(curves),
        log_x=True,
        caption=f"Of the seeds that choose alone. Best, and compared: {', '.join(chosen)}.",
    )


def _loss_chart(results: Results, key: str) -> Chart | None:
    """The validation loss against tokens or training seconds; ``None`` without curves."""
    runs = runs_of_variants(results)
    everything = [curve for group in runs.values() for run in group if (curve := _curve(run, key))]
    if not everything:
        return None
    longest = max(x for curve in everything for x, _ in curve)
    unit, scale = ("", 1.0) if key == "tokens" else _time_unit(longest)
    drawn = []
    for name, group in runs.items():
        middle = _mean_curve(group, key)
        singles = [curve for run in group if (curve := _curve(run, key)) and (len(group) > 1 or not middle)]
        drawn += [_line(name, curve, "thin" if middle else "line", scale) for curve in singles]
        drawn += [_line(name, middle, "line", scale)] if middle else []
    low, high, is_cut = _loss_range(everything)
    has_seeds = any(curve.style == "thin" for curve in drawn)
    return Chart(
        name=f"loss-{key}",
        title="Loss against tokens" if key == "tokens" else "Loss against wall-clock time",
        x_label="training tokens" if key == "tokens" else f"training time ({unit})",
        y_label="validation loss",
        curves=tuple(drawn),
        references=tuple(_reach_references(results, key, scale)),
        x_range=(0.0, 1.04 * (longest or 1.0) / scale),
        y_range=(low, high),
        caption=_loss_gist(results, key)
        + (" Thin: each seed." if has_seeds else "")
        + (" The steep start lies above the frame." if is_cut else ""),
    )


def _reach_references(results: Results, key: str, scale: float) -> list[Reference]:
    """The baseline's final loss and, for each variant, a line down from where it got there."""
    found = []
    for row in entries(results, "variants"):
        final, loss, place = mean(row, "loss"), reached(row, "loss"), reached(row, _PLACES[key])
        if variant_name(row) == BASELINE and final is not None:
            found.append(Reference(y=final, text="baseline's final loss"))
        if place is not None and loss is not None:
            found.append(Reference(y=loss, x=place / scale, label=variant_name(row)))
    return found


def _loss_range(curves: Sequence[Points]) -> tuple[float, float, bool]:
    """The ends of the loss axis, and whether they cut curves: the differences are in what follows the steep start."""
    everything = [loss for curve in curves for _, loss in curve]
    # By place in the curve, not by tokens or seconds, so that both figures get the same axis.
    late = [loss for curve in curves for _, loss in curve[len(curve) * 3 // 20 :]]
    lowest, top = min(everything), max(late)
    room = 0.06 * (top - lowest) or 0.1 * abs(lowest) or 0.1
    return lowest - room, top + room, top + room < max(everything)


def _line(name: str, points: Points, style: Any, scale: float = 1.0) -> Curve:
    return Curve(label=name, x=tuple(x / scale for x, _ in points), y=tuple(y for _, y in points), style=style)


def _curve(run: Mapping[str, Any], key: str) -> Points:
    points = [(number(point.get(key)), number(point.get("loss"))) for point in entries(run, "validation_curve")]
    return [(place, loss) for place, loss in points if place is not None and loss is not None]


def _mean_curve(runs: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Average the seeds' curves point by point; nothing when they were evaluated at different tokens."""
    curves = [curve for run in runs if (curve := _curve(run, key))]
    grids = {tuple(place for place, _ in _curve(run, "tokens")) for run in runs if _curve(run, key)}
    if len(grids) != 1 or len({len(curve) for curve in curves}) > 1:
        return []
    means = zip(*curves, strict=True)
    return [(statistics.fmean(x for x, _ in item), statistics.fmean(y for _, y in item)) for item in means]


def _layers(runs: Sequence[Mapping[str, Any]], key: str) -> Points:
    found: dict[float, list[float]] = {}
    for run in runs:
        for entry in entries(run, "similarity"):
            layer, cosine = number(entry.get("layer")), number(entry.get(key))
            if layer is not None and cosine is not None:
                found.setdefault(layer, []).append(cosine)
    return sorted((layer, statistics.fmean(cosines)) for layer, cosines in found.items())


def _loss_gist(results: Results, key: str) -> str:
    show: Callable[[object], str] = formatting.compact if key == "tokens" else formatting.duration
    parts = [
        f"{variant_name(row)} after {show(place)} ({formatting.ratio(mean(section(row, 'reach'), _RATIOS[key]))})"
        for row in entries(results, "variants")
        if (place := reached(row, _PLACES[key])) is not None
    ]
    what, how = ("Tokens", "") if key == "tokens" else ("Time", " by the clock, other programs' delays included")
    return f"{what} to the baseline's final loss{how}: {', '.join(parts)}." if parts else "Lower is better."


def _time_unit(longest: float) -> tuple[str, float]:
    if longest < 600:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
