"""Spikiness and operator norms of plain and selective models (Zhang et al. 2024, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.papers.comparing import verdict_of
from evidence.papers.diagnosed_runs import Layers, diagnose_variant, layer_curve, overall_mean, quotient, watched_size
from evidence.papers.model_variants import BASELINE, SELECTIVE
from evidence.papers.outcome import Finding, Job, Outcome
from exsel.intervals import Estimate
from exsel.report.charts import Chart


def run_spikiness(job: Job) -> Outcome:
    """Spikiness and norms of plain and selective models."""
    return spikiness_outcome(diagnose_variant(job, BASELINE), diagnose_variant(job, SELECTIVE), size=watched_size(job))


def spikiness_outcome(plain: Sequence[Layers], selective: Sequence[Layers], *, size: str) -> Outcome:
    """Spikiness and norms from watched models; arguments as :func:`evidence.papers.bias.bias_outcome`."""
    spiky, spiky_selective = overall_mean(plain, "spikiness"), overall_mean(selective, "spikiness")
    change = spiky_selective.less(spiky)
    norm = quotient(overall_mean(plain, "token_norm"), overall_mean(selective, "token_norm"))
    operator = quotient(overall_mean(plain, "operator_norm"), overall_mean(selective, "operator_norm"))
    is_spikier = change.holds(-1)
    is_smaller = norm.less(Estimate.of(*(1.0 for _ in norm.values))).holds(1)
    findings = (
        Finding(quantity="spikiness ‖p‖₁/(‖p‖₂² L), plain", ours=spiky, published=0.39),
        Finding(quantity="spikiness, selective", ours=spiky_selective, published=0.26),
        Finding(
            quantity="selective less plain",
            ours=change,
            published=0.26 - 0.39,
            expected="lower is spikier",
            holds=is_spikier,
        ),
        Finding(
            quantity="‖Wᵀx‖, plain over selective",
            ours=norm,
            published=3.0,
            expected="above 1",
            holds=is_smaller,
            digits=3,
        ),
        Finding(quantity="‖W_q W_kᵀ‖, plain over selective", ours=operator, expected="above 1", digits=3),
    )
    conclusion = (
        f"Spikiness is {spiky_selective.mean:.3f} with temperatures and {spiky.mean:.3f} without (lower is spikier); "
        f"the plain model's ‖Wᵀx‖ is {norm.mean:.2f} times the selective one's."
    )
    charts = tuple(
        Chart(
            name=name,
            title=title,
            x_label="layer",
            y_label=label,
            curves=(layer_curve("plain", plain, metric), layer_curve("selective", selective, metric)),
        )
        for name, metric, title, label in (
            ("spikiness", "spikiness", "Spikiness by layer", "‖p‖₁ / (‖p‖₂² L)"),
            ("norm", "token_norm", "Norm along a token, by layer", "mean ‖Wᵀx‖"),
        )
    )
    return Outcome(
        verdict=verdict_of((is_spikier, is_smaller)), conclusion=conclusion, size=size, findings=findings, charts=charts
    )
