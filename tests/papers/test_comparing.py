from __future__ import annotations

import pytest

from evidence.papers.comparing import (
    Comparison,
    Contrast,
    Trained,
    claimed_gain,
    comparison_outcome,
    conclude,
    contrast_of_contrasts,
    finding,
    gain,
    interval,
    verdict_of,
)
from evidence.papers.model_variants import BASELINE, EXCLUSIVE, SELECTIVE
from exsel.intervals import Estimate
from papers.fakes import read_again
from papers.trainings import invented

LOSSES = {"baseline": (2.0, 2.2, 2.1), "exclusive": (1.9, 2.11, 1.99), "selective": (2.01, 2.19, 2.1)}
TRAINED = Trained({name: [invented(loss) for loss in losses] for name, losses in LOSSES.items()})


def test_differences_are_taken_seed_by_seed() -> None:
    estimate = TRAINED.estimate(gain(EXCLUSIVE))
    assert estimate.values == pytest.approx((0.1, 0.09, 0.11))
    assert estimate.mean == pytest.approx(0.1)
    # Student's t with 2 degrees of freedom, and a deviation of 0.01.
    assert estimate.high == pytest.approx(0.1 + 4.302653 * 0.01 / 3**0.5)
    assert TRAINED.estimate(gain(EXCLUSIVE, SELECTIVE)).values == pytest.approx((0.11, 0.08, 0.11))


def test_a_difference_of_gains() -> None:
    words = {"above": "more", "below": "less", "between": "the same"}
    contrast = contrast_of_contrasts(gain(EXCLUSIVE), gain(SELECTIVE), subject="x", quantity="x, nats", **words)
    assert TRAINED.estimate(contrast).values == pytest.approx((0.11, 0.08, 0.11))
    assert contrast.sign is None


def test_losses_are_taken_after_a_share_of_the_training() -> None:
    # Invented losses fall by a straight line of 4 points: 1.75 − 1 + loss … loss.
    early = Trained({"baseline": [invented(2.0)], "exclusive": [invented(1.5)]})
    assert early.estimate(claimed_gain(EXCLUSIVE, share=0.25)).mean == pytest.approx(0.5)
    assert early.estimate(Contrast(**{**vars(gain(EXCLUSIVE)), "terms": ((1.0, BASELINE),), "share": 0.5})).mean == 2.5


def test_how_soon_the_baselines_loss_is_reached() -> None:
    """Losses fall by 0.25 a point: 0.1 less at the end is there 0.4 points sooner."""
    reached = TRAINED.reached(EXCLUSIVE)
    assert reached is not None
    assert reached[0].values == pytest.approx((3.6 / 4, 3.64 / 4, 3.56 / 4))
    assert reached[1].values == pytest.approx(reached[0].values)
    assert TRAINED.reached(SELECTIVE) is None


def test_ratios_are_to_the_baseline_of_the_same_seed() -> None:
    trained = Trained(
        {
            "baseline": [invented(2.0, ms_per_step=10), invented(2.0, ms_per_step=20)],
            "exclusive": [invented(1.9, ms_per_step=11), invented(1.9, ms_per_step=21)],
        }
    )
    assert trained.ratio(EXCLUSIVE, "ms_per_step").values == pytest.approx((1.1, 1.05))


@pytest.mark.parametrize(
    ("values", "sign", "holds"),
    [
        ((0.1, 0.11, 0.09), 1, True),
        ((-0.1, -0.11, -0.09), 1, False),
        ((0.1, -0.2, 0.15), 1, None),
        ((0.1,), 1, None),
        ((-0.1, -0.11, -0.09), -1, True),
        ((0.1, 0.11, 0.09), None, None),
    ],
)
def test_a_claim_holds_only_beyond_its_interval(
    values: tuple[float, ...], sign: int | None, holds: bool | None
) -> None:
    contrast = gain(EXCLUSIVE, sign=sign)  # type: ignore[arg-type]
    assert finding(contrast, Estimate.of(*values)).holds is holds


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([True, True], "reproduced"),
        ([True, False], "partly"),
        ([True, None], "partly"),
        ([False, False], "not reproduced"),
        ([False, None], "unclear"),
        ([None], "unclear"),
        ([], "unclear"),
    ],
)
def test_the_verdict(claims: list[bool | None], expected: str) -> None:
    assert verdict_of(claims) == expected


def test_the_conclusion_says_what_the_numbers_say() -> None:
    contrasts = [gain(EXCLUSIVE), gain(SELECTIVE)]
    estimates = [TRAINED.estimate(contrast) for contrast in contrasts]
    assert conclude(contrasts, estimates) == (
        "Better than the baseline: exclusive (+0.1000 nats). "
        "Not told apart from the baseline by 3 seeds: selective (0.0000 nats)."
    )
    worse = [Estimate.of(-0.1, -0.11, -0.12), Estimate.of(-0.2, -0.21, -0.22)]
    assert conclude(contrasts, worse) == "Worse than the baseline: exclusive (−0.1100 nats), selective (−0.2100 nats)."
    assert "by 1 seed:" in conclude(contrasts[:1], [Estimate.of(0.1)])


def test_an_outcome_has_it_all() -> None:
    comparison = Comparison(
        contrasts=(claimed_gain(EXCLUSIVE), gain(SELECTIVE)),
        drawn=(BASELINE, EXCLUSIVE, SELECTIVE),
        timed=(EXCLUSIVE,),
        published_speed_up=1.45,
    )
    assert [variant.name for variant in comparison.variants] == ["baseline", "exclusive", "selective"]
    found = comparison_outcome(comparison, TRAINED, size="small")
    assert found.verdict == "reproduced"
    assert [finding.holds for finding in found.findings[:2]] == [True, None]
    sooner = next(finding for finding in found.findings if finding.published == 1.45)
    assert sooner.ours.values == pytest.approx((4 / 3.6, 4 / 3.64, 4 / 3.56))
    gains, course, by_tokens, by_seconds = found.charts
    assert gains.curves[0].y == pytest.approx((0.1, 0.0), abs=1e-12)
    assert len(gains.categories) == 2
    assert course.curves[0].label == "exclusive"
    assert course.curves[0].y == pytest.approx((0.1,) * 4)
    assert by_tokens.curves[0].x == (1000, 2000, 3000, 4000)
    assert by_tokens.curves[0].y[-1] == pytest.approx(2.1)
    assert by_seconds.curves[0].x == (2, 4, 6, 8)
    (table,) = found.tables
    assert all(len(row) == len(table.headings) for row in table.rows)
    assert table.rows[1][3] == "0.1000 (0.0752 to 0.1248)"
    assert table.rows[2][4:6] == ("not reached", "not reached")
    assert read_again(found) == found


def test_one_seed_decides_nothing() -> None:
    trained = Trained({"baseline": [invented(2.0)], "exclusive": [invented(1.0)]})
    comparison = Comparison(contrasts=(claimed_gain(EXCLUSIVE),), drawn=(BASELINE, EXCLUSIVE))
    found = comparison_outcome(comparison, trained, size="small")
    assert found.verdict == "unclear"
    assert found.charts[0].curves[0].low is None
    assert interval(found.findings[0].ours, 2) == "1.00"
