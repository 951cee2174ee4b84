"""The figures of the report as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from exsel.diagnostics.diagnosis_report.diagnosed_models import (
    METRIC_OF,
    DiagnosedModel,
    difference,
    extent,
    measured,
    shown,
)
from exsel.report.charts import Chart, Curve, Drawable, HeatMap, Reference, Tick
from exsel.report.looks import Look, look

# The similarities have one look in every report; 1 and 2 are those of two models, too.
_SLOTS = {"similarity": 1, "similarity_after": 3, "centred_similarity": 2, "value_similarity": 4, "self_weight": 6}
_TEMPERATURES = ("query_temperature", "key_temperature", "value_temperature")
# Metrics that differ much from token to token: the least and the greatest token are drawn too.
_OF_TOKENS = (*_TEMPERATURES, "token_norm")
_OF_HEADS_ALONE = ("strength", "operator_norm")
# An axis spans at least this share of its largest number, and of the range of the metric.
_LEAST_SHARE, _LEAST_OF_RANGE = 0.1, 0.02
# An axis is logarithmic where the largest value is this many times the smallest.
_FAR = 16


def looks_of_models(models: Sequence[DiagnosedModel]) -> dict[str, Look]:
    """The look of each model's curve, and in a report of one model of each similarity."""
    titles = {METRIC_OF[name].title: slot for name, slot in _SLOTS.items()} if len(models) == 1 else {}
    slots = {**titles, **{model.name: slot for slot, model in enumerate(models, start=1)}}
    return {label: look(label, slot) for label, slot in slots.items()}


def figures_by_section(models: Sequence[DiagnosedModel]) -> dict[str, list[Drawable]]:
    """All figures for which there are numbers, by the report's sections."""
    similarities = measured(models, _SLOTS)
    bias = [_similarities(models[0], similarities)] if len(models) == 1 and similarities else None
    maps = [("similarity", "heads"), ("sink_mass", "heads"), ("similarity", "buckets")]
    positions = measured(models, ("similarity", "effective_tokens"))
    found: dict[str, list[Drawable]] = {
        "bias": [*(bias or _by_layer(models, similarities))],
        "places": [
            *(each for name, where in maps if name == "similarity" or len(models) == 1
              for each in _heat_maps(models, name, where)),
            *(_by_position(models, name) for name in positions),
        ],
        "spread": [*_by_layer(models, ("spikiness", "entropy", "effective_tokens", "sink_mass"))],
        "mechanisms": [*_by_layer(models, (*_TEMPERATURES, "strength"))],
        "weights": [*_by_layer(models, ("token_norm", "operator_norm"))],
    }  # fmt: skip
    return {name: figures for name, figures in found.items() if figures}


def is_by_depth(models: Sequence[DiagnosedModel]) -> bool:
    """Whether layers are drawn at their relative depth, because the models have different numbers of them."""
    return len({model.depth for model in models}) > 1


def _by_layer(models: Sequence[DiagnosedModel], names: Sequence[str]) -> Iterator[Chart]:
    """A chart for each metric: a curve for each model, from the lowest to the highest head."""
    several_heads = any(layer["num_heads"] > 1 for model in models for layer in model.layers)
    for name in measured(models, names):
        caption = _means_in_words(models, name)
        caption += " Band: from the lowest to the highest head." if several_heads else ""
        having = [model for model in models if model.means(name)]
        curves = [_layer_curve(models, model, name) for model in having]
        if name in _OF_TOKENS:
            caption += " Thin lines: from the least to the most token."
            curves = [*(_layer_curve(models, model, name, "range") for model in having), *curves]
        yield _chart(curves, name, "layers", x_label=_layers_label(models), caption=caption)


def _similarities(model: DiagnosedModel, names: Sequence[str]) -> Chart:
    """All similarities of one model in one chart, without bands."""
    bias = model.means("similarity")
    lines = [
        replace(_layer_curve([model], model, name), label=METRIC_OF[name].title, low=None, high=None) for name in names
    ]
    caption = f"Mean over tokens and heads.{f' cos(yᵢ, vᵢ): {extent(bias)}.' if bias else ''}"
    chart = _chart(lines, "similarity", "layers", x_label="layer", caption=caption)
    return replace(chart, name="similarities-layers", title="Attention similarity bias in each layer", y_label="mean")


def _layer_curve(
    models: Sequence[DiagnosedModel], model: DiagnosedModel, name: str, style: Literal["line", "range"] = "line"
) -> Curve:
    """A metric over the layers, with its lowest and highest head, or for a ``range`` its least and greatest token."""
    places = [layer["layer"] for layer in model.layers]
    if is_by_depth(models):
        places = [(place + 0.5) / model.depth for place in places]
    spreads = []
    for layer in model.layers:
        found = model.metric(layer, name)
        heads = found and ((found["least"], found["most"]) if style == "range" else found["heads"])
        spreads.append((found["mean"], min(heads), max(heads)) if found and heads else None)
    return replace(_curve(model.name, places, spreads), style=style)


def _curve(label: str, places: Sequence[float], spreads: Sequence[tuple[float, float, float] | None]) -> Curve:
    """A curve through the means of ``spreads``, each (mean, least, most); a gap where there is none."""
    y, low, high = zip(*(spread or (math.nan,) * 3 for spread in spreads), strict=True)
    return Curve(label=label, x=tuple(places), y=y, low=low, high=high)


def _layers_label(models: Sequence[DiagnosedModel]) -> str:
    depths = " and ".join(str(model.depth) for model in models)
    return f"relative depth ({depths} layers)" if is_by_depth(models) else "layer"


def _chart(curves: Sequence[Curve], name: str, where: str, **options: Any) -> Chart:
    """A chart of a metric, in which nearly equal numbers are a nearly level line."""
    metric = METRIC_OF[name]
    drawn = [abs(value) for curve in curves for value in (*curve.y, *(curve.low or ()), *(curve.high or ()))]
    least_height = _LEAST_SHARE * max(value for value in drawn if not math.isnan(value))
    if metric.low is not None and metric.high is not None:
        least_height = max(least_height, _LEAST_OF_RANGE * (metric.high - metric.low))
    return Chart(
        name=f"{name}-{where}",
        title=metric.title if where == "layers" else f"{metric.title} by position",
        y_label=metric.symbol,
        curves=tuple(curves),
        least_height=least_height,
        references=(Reference(y=0.0),) if metric.low == -1 else (),
        **options,
    )


def _by_position(models: Sequence[DiagnosedModel], name: str) -> Chart:
    curves = []
    for model in models:
        rows = [found["buckets"] for layer in model.layers if (found := model.metric(layer, name)) is not None]
        columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
        if columns:
            spreads = [(statistics.fmean(each), min(each), max(each)) if each else None for each in columns]
            curves.append(_curve(model.name, range(len(columns)), spreads))
    buckets = _buckets(models)
    is_short = len(buckets) > 6  # then there is only room for the first place of each bucket
    means = [y for curve in curves for y in curve.y if not math.isnan(y)]
    return _chart(
        curves,
        name,
        "positions",
        x_label=f"position of the token{', from' if is_short else ''}",
        x_ticks=tuple(Tick(k, text.partition("–")[0] if is_short else text) for k, text in enumerate(buckets)),
        log_y=min(means) > 0 and max(means) > _FAR * min(means),
        caption="Mean over layers, heads and the tokens at these places of their sequences. Band: from the lowest to "
        "the highest layer.",
    )


def _buckets(models: Sequence[DiagnosedModel]) -> list[str]:
    """The names of the buckets of positions, ``4–7``, up to the longest sequence."""
    longest = max((model.record for model in models), key=lambda record: len(record["buckets"]))
    end = longest["data"].get("longest") or math.inf
    ends = [(bucket["first"], min(bucket["last"], end)) for bucket in longest["buckets"]]
    return [str(first) if first == last else f"{first}–{last}" for first, last in ends]


def _means_in_words(models: Sequence[DiagnosedModel], name: str) -> str:
    if len(models) == 1:
        over = "heads" if name in _OF_HEADS_ALONE else "tokens and heads"
        return f"Mean over {over}: {extent(models[0].means(name))}."
    means = {model.name: model.mean(name) for model in models}
    parts = [f"{model} {shown(mean)}" for model, mean in means.items() if mean is not None]
    lacks = [f" Not measured in {model}." for model, mean in means.items() if mean is None]
    gap = "" if lacks else f" (difference {difference(*means.values())})"
    return f"Mean: {', '.join(parts)}{gap}.{''.join(lacks)}"


def _heat_maps(models: Sequence[DiagnosedModel], name: str, where: str) -> Iterator[HeatMap]:
    """Maps by layer and head or bucket of positions: of one model, or of two and their difference."""
    tables = [_fields(model, name, where) for model in models]
    largest = max((abs(value) for table in tables for value in table.values()), default=0.0) or None
    maps = [("", "", models[0], tables[0], largest)]
    if len(models) == 2:
        (first, second), (one, two) = models, tables
        shapes = [[(layer["layer"], layer["num_heads"]) for layer in model.layers] for model in models]
        shared = {place: one[place] - two[place] for place in one.keys() & two.keys() if shapes[0] == shapes[1]}
        maps = [
            ("-first", f": {first.name}", first, one, largest),
            ("-second", f": {second.name}", second, two, largest),
            ("-difference", f": {first.name} less {second.name}", first, shared, None),
        ]
    for stem, subject, model, table, scale in maps:
        if not table:
            continue
        layers, height = [layer["layer"] for layer in model.layers], 1 + max(row for _, row in table)
        caption = f"{extent(list(table.values()))}: the deeper the colour, the farther from 0."
        caption += " The second colour is below 0." if min(table.values()) < 0 else ""
        caption += " A stroke: not measured." if len(table) < len(layers) * height else ""
        yield HeatMap(
            name=f"{name}-{where}{stem}",
            title=f"{METRIC_OF[name].title} by layer and {'head' if where == 'heads' else 'position'}{subject}",
            x_label="layer",
            y_label="head" if where == "heads" else "position of the token",
            columns=tuple(map(str, layers)),
            rows=tuple(map(str, range(height))) if where == "heads" else tuple(_buckets(models)[:height]),
            values=tuple(tuple(table.get((layer, row)) for layer in layers) for row in range(height)),
            scale=scale,
            caption=caption,
        )


def _fields(model: DiagnosedModel, name: str, where: str) -> dict[tuple[int, int], float]:
    """By layer and head or bucket, the numbers that were measured."""
    return {
        (layer["layer"], row): value
        for layer in model.layers
        if (found := model.metric(layer, name)) is not None
        for row, value in enumerate(found[where])
        if value is not None
    }
