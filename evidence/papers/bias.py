"""The attention similarity bias by layer (Zhai 2026, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.papers.comparing import verdict_of
from evidence.papers.diagnosed_runs import (
    Layers,
    diagnose_variant,
    layer_curve,
    layer_means,
    overall_mean,
    watched_size,
)
from evidence.papers.model_variants import BASELINE, EXCLUSIVE
from evidence.papers.outcome import Finding, Job, Outcome
from exsel.report.charts import Chart


def run_bias(job: Job) -> Outcome:
    """The attention similarity bias by layer, of plain and exclusive models."""
    return bias_outcome(diagnose_variant(job, BASELINE), diagnose_variant(job, EXCLUSIVE), size=watched_size(job))


def bias_outcome(plain: Sequence[Layers], exclusive: Sequence[Layers], *, size: str) -> Outcome:
    """The similarity bias from watched models.

    Args:
        plain, exclusive: the ``layers`` of a diagnosis, a model a seed.
        size: what was looked at.
    """
    similarity, values = overall_mean(plain, "similarity"), overall_mean(plain, "value_similarity")
    above = similarity.less(values)
    by_layer = layer_means(plain, "similarity")
    growth = by_layer[-1].less(by_layer[0])
    centred, weight = overall_mean(plain, "centred_similarity"), overall_mean(plain, "self_weight")
    before, after = overall_mean(exclusive, "similarity"), overall_mean(exclusive, "similarity_after")
    is_above, is_growing = above.holds(1), growth.holds(1)
    findings = (
        Finding(quantity="mean cos(yᵢ, vᵢ), plain", ours=similarity),
        Finding(quantity="mean cos(vᵢ, vⱼ), plain", ours=values),
        Finding(quantity="the first less the second", ours=above, expected="above 0", holds=is_above),
        Finding(
            quantity="cos(yᵢ, vᵢ), last layer less first", ours=growth, expected="grows with depth", holds=is_growing
        ),
        Finding(quantity="mean self-weight aᵢᵢ, plain", ours=weight, expected="small"),
        Finding(
            quantity="mean cos(yᵢ, vᵢ) without the values' common direction, plain",
            ours=centred,
            expected="not in the paper: what a shared direction does not explain",
        ),
        Finding(quantity="mean cos(yᵢ, vᵢ), exclusive, before the projection", ours=before),
        Finding(
            quantity="mean cos(zᵢ, vᵢ), exclusive",
            ours=after,
            published=0.0,
            expected="0 by construction",
            holds=all(abs(value) < 1e-4 for value in after.values),
        ),
    )
    conclusion = (
        f"In plain models cos(yᵢ, vᵢ) is {similarity.mean:.2f} where two values have {values.mean:.2f}, from "
        f"{by_layer[0].mean:.2f} in the first layer to {by_layer[-1].mean:.2f} in the last, with a self-weight of "
        f"{weight.mean:.2f}; without the values' common direction {centred.mean:.2f} remains."
    )
    chart = Chart(
        name="layers",
        title="Attention similarity bias by layer",
        x_label="layer",
        y_label="mean cosine, or weight",
        curves=(
            layer_curve("plain: cos(yᵢ, vᵢ)", plain, "similarity"),
            layer_curve("plain: without common direction", plain, "centred_similarity", dashed=True),
            layer_curve("plain: cos(vᵢ, vⱼ)", plain, "value_similarity"),
            layer_curve("plain: self-weight aᵢᵢ", plain, "self_weight"),
            layer_curve("exclusive: before projecting", exclusive, "similarity", dashed=True),
            layer_curve("exclusive: cos(zᵢ, vᵢ)", exclusive, "similarity_after"),
        ),
        caption="What attention puts out points along the token's own value, more than its weight on itself asks for.",
    )
    return Outcome(
        verdict=verdict_of((is_above, is_growing)), conclusion=conclusion, size=size, findings=findings, charts=(chart,)
    )
