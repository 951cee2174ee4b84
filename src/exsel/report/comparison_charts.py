"""The figures of a comparison as data: loss by tokens and seconds, similarity by layer, loss by learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exsel.report import formatting
from exsel.report.charts import Chart, Curve, Reference
from exsel.report.comparison import (
    entries,
    mean,
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


def comparison_looks(results: Results) -> dict[str, Look]:
    """The look of each variant."""
    rows = [*entries(results, "variants"), *entries(results, "runs")]
    return looks_of_labels([list(dict.fromkeys(variant_name(row) for row in rows))])


def loss_charts(results: Results) -> list[Chart]:
    """The validation loss against tokens and against training seconds; nothing without curves."""
    charts = []
    runs = runs_of_variants(results)
    for key in ("tokens", "seconds"):
        everything = [curve for group in runs.values() for run in group if (curve := _curve(run, key))]
        if everything:
            charts.append(_loss_chart(results, runs, everything, key))
    return charts


def similarity_chart(results: Results) -> Chart | None:
    """The attention similarity bias of each layer; ``None`` when no run measured it."""
    curves, gists = [], []
    for name, runs in runs_of_variants(results).items():
        before, output = _layers(runs, "before_exclusion"), _layers(runs, "output")
        curves += [_line(name, points, style) for points, style in ((before, "dashed"), (output, "line")) if points]
        if output:
            shown = {formatting.fixed(end, 2).replace("−0.00", "0.00"): None for end in _extent(output)}
            gists.append(f"{name} {' to '.join(shown)}")
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


def sweep_chart(results: Results) -> Chart | None:
    """The final loss against the learning rate, of the runs that chose it; ``None`` where only one was tried."""
    curves = []
    rows = entries(results, "sweep")
    for name in dict.fromkeys(map(variant_name, rows)):
        own = [row for row in rows if variant_name(row) == name]
        found = ((number(row.get("learning_rate")), read_estimate(row, "loss")) for row in own)
        points = sorted((rate, loss) for rate, loss in found if rate is not None and loss is not None)
        if points:
            rates, losses = zip(*points, strict=True)
            curves.append(Curve.of(name, rates, losses))
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
        caption=f"Chosen: {', '.join(chosen)}.",
    )


def _loss_chart(
    results: Results, runs: Mapping[str, Sequence[Mapping[str, Any]]], everything: Sequence[Points], key: str
) -> Chart:
    longest = max(x for curve in everything for x, _ in curve)
    unit, scale = ("", 1.0) if key == "tokens" else _time_unit(longest)
    drawn = []
    for name, group in runs.items():
        middle = _mean_curve(group, key)
        singles = [curve for run in group if (curve := _curve(run, key)) and (len(group) > 1 or not middle)]
        drawn += [_line(name, curve, "thin" if middle else "line", scale) for curve in singles]
        drawn += [_line(name, middle, "line", scale)] if middle else []
    low, high, is_cut = _loss_range(everything)
    return Chart(
        name=f"loss-{key}",
        title="Loss against tokens" if key == "tokens" else "Loss against wall-clock time",
        x_label="training tokens" if key == "tokens" else f"training time ({unit})",
        y_label="validation loss",
        curves=tuple(drawn),
        references=tuple(_reach_references(results, key, scale)),
        x_range=(0.0, 1.04 * (longest or 1.0) / scale),
        y_range=(low, high),
        caption=_loss_gist(results, key) + (" The steep start lies above the frame." if is_cut else ""),
    )


def _reach_references(results: Results, key: str, scale: float) -> list[Reference]:
    """The baseline's final loss and, for each variant, a line down from where it got there."""
    rows = entries(results, "variants")
    found = []
    for row in rows:
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


def _extent(points: Points) -> tuple[float, float]:
    return min(y for _, y in points), max(y for _, y in points)


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
    what = "Tokens" if key == "tokens" else "Time"
    return f"{what} to the baseline's final loss: {', '.join(parts)}." if parts else "Lower is better."


def _time_unit(longest: float) -> tuple[str, float]:
    if longest < 600:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
