"""The report's figures: loss against tokens and seconds, similarity per layer, loss against learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from exsel.report import formatting, summary, svg
from exsel.report.formatting import number
from exsel.report.series import Picture, Series, look
from exsel.variants import BASELINE, VARIANTS

WIDTH, HEIGHT = 360, 255

_KNOWN = tuple(VARIANTS)

Points = list[tuple[float, float]]


def series(results: Mapping[str, Any]) -> list[Series]:
    """Return the look of each variant, the same in every report for the four that exsel knows."""
    names = summary.variant_names(results)
    for run in summary.entries(results, "runs"):
        if summary.variant_name(run) not in names:
            names.append(summary.variant_name(run))
    unknown = [name for name in names if name not in _KNOWN]
    looks = []
    for name in names:
        spare = svg.SERIES_COLOURS - len(_KNOWN)
        slot = _KNOWN.index(name) if name in _KNOWN else len(_KNOWN) + unknown.index(name) % spare
        looks.append(look(name, slot))
    return looks


def loss_pictures(results: Mapping[str, Any]) -> list[Picture]:
    """Draw the validation loss against tokens and against training seconds; nothing without curves."""
    runs = _best_runs(results)
    pictures = []
    for key, title in (("tokens", "tokens"), ("seconds", "training time")):
        curves = {name: [_curve(run, key) for run in group] for name, group in runs.items()}
        curves = {name: [curve for curve in group if curve] for name, group in curves.items()}
        if any(curves.values()):
            pictures.append(_loss_picture(results, curves, key, title))
    return pictures


def similarity_picture(results: Mapping[str, Any]) -> Picture | None:
    """Draw the attention similarity bias of each layer; ``None`` when no run measured it."""
    lines = {
        name: (_layers(group, "output"), _layers(group, "before_exclusion"))
        for name, group in _best_runs(results).items()
    }
    if not any(output or before for output, before in lines.values()):
        return None
    layers = sorted({layer for pair in lines.values() for line in pair for layer, _ in line})
    label = "Mean cosine of attention output and own value in each layer, a line for each variant."
    with svg.drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color=svg.MUTED, linewidth=0.8)
        for look in series(results):
            output, before = lines.get(look.variant, ([], []))
            every = max(1, len(layers) // 12)
            _line(axes, before, look, dashes=(3, 2), markerfacecolor=svg.SURFACE, markevery=every)
            _line(axes, output, look, markevery=every)
        axes.set_xlabel("layer")
        axes.set_ylabel("mean cos(yᵢ, vᵢ)")
        if len(layers) <= 12:
            axes.set_xticks(layers)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        drawn = svg.inline(figure, name="similarity", label=label)
        return Picture("similarity", "Similarity in each layer", drawn, _similarity_gist(lines))


def sweep_picture(results: Mapping[str, Any]) -> Picture | None:
    """Draw the final loss against the learning rate; ``None`` when only one was tried."""
    if not summary.is_sweep(results):
        return None
    rates = summary.learning_rates(results)
    with svg.drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        for look in series(results):
            line: Points = []
            for row in summary.entries(results, "variants"):
                rate, loss = number(row.get("learning_rate")), summary.mean(row, "loss")
                if summary.variant_name(row) != look.variant or rate is None or loss is None:
                    continue
                line.append((rate, loss))
                deviation = summary.spread(row, "loss")
                if deviation is not None:
                    axes.vlines(rate, loss - deviation, loss + deviation, color=look.colour, linewidth=1.2)
            _line(axes, sorted(line), look)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(rates, [formatting.learning_rate(rate) for rate in rates])
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel("final validation loss")
        label = "Final validation loss against the learning rate, a line for each variant."
        drawn = svg.inline(figure, name="sweep", label=label)
        return Picture("sweep", "Final loss against learning rate", drawn, _sweep_gist(results))


def _loss_picture(results: Mapping[str, Any], curves: Mapping[str, Sequence[Points]], key: str, title: str) -> Picture:
    runs = _best_runs(results)
    label = f"Validation loss against {title}, a curve for each variant."
    with svg.drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        for look in series(results):
            group = curves.get(look.variant, [])
            middle = _mean_curve(runs.get(look.variant, []), key)
            for curve in group if len(group) > 1 or not middle else []:
                axes.plot(*_split(curve), color=look.colour, linewidth=0.9, alpha=0.45 if middle else 1.0)
            _line(axes, middle, look, markevery=(look.slot % 3, max(1, len(middle) // 7)))
        _mark_reach(axes, results, key)
        longest = max(x for group in curves.values() for curve in group for x, _ in curve)
        cut = _cut_start(axes, curves)
        if key == "tokens":
            axes.xaxis.set_major_formatter(FuncFormatter(_short_count))
            axes.set_xlabel("training tokens")
        else:
            unit, seconds = _time_unit(longest)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / seconds:g}"))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 1.5, 2, 3, 5, 10]))
            axes.set_xlabel(f"training time ({unit})")
        axes.set_ylabel("validation loss")
        axes.set_xlim(left=0)
        caption = _loss_gist(results, key) + (" The steep start lies above the frame." if cut else "")
        drawn = svg.inline(figure, name=f"loss-{key}", label=label)
        heading = "Loss against tokens" if key == "tokens" else "Loss against wall-clock time"
        return Picture(f"loss-{key}", heading, drawn, caption)


def _line(axes: Axes, points: Points, look: Series, **style: Any) -> None:
    if points:
        axes.plot(*_split(points), color=look.colour, marker=look.marker, **style)


def _split(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mark_reach(axes: Axes, results: Mapping[str, Any], key: str) -> None:
    """Draw the baseline's final loss and, for each variant, a line down from where it got there."""
    if len({number(row.get("learning_rate")) for row in summary.best_rows(results)}) > 1:
        return  # each variant is compared with the baseline at its own rate: there is no one line to draw
    for row in summary.best_rows(results):
        loss = summary.mean(row, "loss")
        if summary.variant_name(row) == BASELINE and loss is not None:
            axes.axhline(loss, color=svg.MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                "baseline's final loss",
                (0.02, loss),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=svg.MUTED,
                fontsize=9,
            )
    looks = {look.variant: look for look in series(results)}
    for row in summary.best_rows(results):
        reach = summary.section(row, "reach")
        place, loss = number(reach.get(key)), number(reach.get("loss"))
        if place is not None and loss is not None:
            colour = looks[summary.variant_name(row)].colour
            axes.vlines(place, 0, loss, color=colour, linewidth=1.3, linestyle=(0, (1, 1.5)))


def _cut_start(axes: Axes, curves: Mapping[str, Sequence[Points]]) -> bool:
    """Fit the loss axis to the curves without their steep start: the differences are in the rest."""
    everything = [loss for group in curves.values() for curve in group for _, loss in curve]
    # By place in the curve, not by tokens or seconds, so that both figures get the same axis.
    late = [loss for group in curves.values() for curve in group for _, loss in curve[len(curve) * 3 // 20 :]]
    lowest, top = min(everything), max(late)
    room = 0.06 * (top - lowest) or 0.1 * abs(lowest) or 0.1
    axes.set_ylim(lowest - room, top + room)
    return top + room < max(everything)


def _best_runs(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    rates = {summary.variant_name(row): number(row.get("learning_rate")) for row in summary.best_rows(results)}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in summary.entries(results, "runs"):
        name = summary.variant_name(run)
        if rates.get(name) in (None, number(run.get("learning_rate"))):
            groups.setdefault(name, []).append(run)
    return groups


def _curve(run: Mapping[str, Any], key: str) -> Points:
    points = []
    for point in summary.entries(run, "validation_curve"):
        place, loss = number(point.get(key)), number(point.get("loss"))
        if place is not None and loss is not None:
            points.append((place, loss))
    return points


def _mean_curve(runs: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Average the seeds' curves point by point; nothing when they were evaluated at different tokens."""
    curves = [curve for run in runs if (curve := _curve(run, key))]
    grids = {tuple(place for place, _ in _curve(run, "tokens")) for run in runs if _curve(run, key)}
    if not curves or len(grids) > 1 or len({len(curve) for curve in curves}) > 1:
        return []
    means = zip(*curves, strict=True)
    return [(statistics.fmean(x for x, _ in item), statistics.fmean(y for _, y in item)) for item in means]


def _layers(runs: Sequence[Mapping[str, Any]], key: str) -> Points:
    found: dict[float, list[float]] = {}
    for run in runs:
        for entry in summary.entries(run, "similarity"):
            layer, cosine = number(entry.get("layer")), number(entry.get(key))
            if layer is not None and cosine is not None:
                found.setdefault(layer, []).append(cosine)
    return sorted((layer, statistics.fmean(cosines)) for layer, cosines in found.items())


def _loss_gist(results: Mapping[str, Any], key: str) -> str:
    show: Callable[[object], str] = formatting.compact if key == "tokens" else formatting.duration
    parts = []
    for row in summary.best_rows(results):
        reach = summary.section(row, "reach")
        if number(reach.get(key)) is not None:
            share = formatting.ratio(reach.get(f"{key}_ratio"))
            parts.append(f"{summary.variant_name(row)} after {show(reach[key])} ({share})")
    if not parts:
        return "Lower is better."
    what = "Tokens" if key == "tokens" else "Time"
    return f"{what} to the baseline's final loss: {', '.join(parts)}."


def _similarity_gist(lines: Mapping[str, tuple[Points, Points]]) -> str:
    parts = []
    for name, (output, _) in lines.items():
        if output:
            low, high = min(y for _, y in output), max(y for _, y in output)
            shown = [formatting.fixed(value, 2) for value in (low, high)]
            shown = ["0.00" if value == "−0.00" else value for value in shown]
            extent = shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"
            parts.append(f"{name} {extent}")
    dashed = any(before for _, before in lines.values())
    gist = f"What reaches the output projection: {', '.join(parts)}." if parts else ""
    return f"{gist}{' Dashed, hollow markers: before the exclusion.' if dashed else ''}".strip()


def _sweep_gist(results: Mapping[str, Any]) -> str:
    parts = [
        f"{summary.variant_name(row)} {formatting.learning_rate(row.get('learning_rate'))}"
        for row in summary.best_rows(results)
    ]
    return f"Best learning rates: {', '.join(parts)}."


def _short_count(value: float, _: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _time_unit(longest: float) -> tuple[str, float]:
    if longest < 600:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
