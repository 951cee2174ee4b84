from __future__ import annotations

import math

import pytest

from exsel.intervals import Estimate


def test_an_estimate_is_the_mean_with_students_interval() -> None:
    estimate = Estimate.of(1.0, 2.0, 3.0)
    assert estimate.mean == 2.0
    assert estimate.low is not None
    assert estimate.high is not None
    # Deviation 1, three values: the 97.5% quantile of two degrees of freedom over √3.
    assert estimate.high - 2 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert 2 - estimate.low == pytest.approx(estimate.high - 2)


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.7062), (11, 2.2281), (12, 2.2010), (31, 2.0423), (1001, 1.9623)]
)
def test_quantiles(count: int, quantile: float) -> None:
    values = [float(index % 2) for index in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    estimate = Estimate.of(*values)
    assert estimate.high is not None
    assert estimate.high - mean == pytest.approx(quantile * deviation / math.sqrt(count), rel=1e-4)


def test_one_value_has_no_interval() -> None:
    estimate = Estimate.of(0.7)
    assert (estimate.values, estimate.mean, estimate.low, estimate.high) == ((0.7,), 0.7, None, None)
    assert estimate.sign() == 0
    with pytest.raises(ValueError, match="needs a value"):
        Estimate.of()


def test_a_ratio_and_its_inverse_say_the_same() -> None:
    ratio, inverse = Estimate.of_ratios(0.5, 0.8), Estimate.of_ratios(2.0, 1.25)
    assert ratio.mean == pytest.approx(math.sqrt(0.4))
    assert ratio.low is not None
    assert ratio.low > 0  # two values whose plain interval would reach far below 0
    assert (1 / ratio.mean, 1 / ratio.low) == pytest.approx((inverse.mean, inverse.high))
    with pytest.raises(ValueError, match="positive"):
        Estimate.of_ratios(1.0, 0.0)


def test_a_product_is_as_doubtful_as_both_factors() -> None:
    one, other = Estimate.of_ratios(0.5, 0.6, 0.7), Estimate.of_ratios(1.1, 1.2)
    both = one.times(other)
    assert one.high is not None
    assert other.high is not None
    assert both.high is not None
    assert both.mean == pytest.approx(one.mean * other.mean)
    assert math.log(both.high / both.mean) ** 2 == pytest.approx(
        math.log(one.high / one.mean) ** 2 + math.log(other.high / other.mean) ** 2
    )
    exact = Estimate.of_ratios(1.5, 1.5)
    assert one.times(exact).high == pytest.approx(1.5 * one.high)
    assert one.times(Estimate.of_ratios(1.5)).high is None


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0, 4.0])
def test_the_seeds_to_tell_are_about_enough(deviation: float) -> None:
    """With so many seeds of this mean and deviation the interval leaves out 0; with a third fewer it does not."""
    values = [1 + deviation / math.sqrt(2), 1 - deviation / math.sqrt(2)]
    needed = Estimate.of(*values).seeds_to_tell()
    assert needed is not None

    def of_so_many(count: int) -> Estimate:
        ends = [1.0, -1.0] * (count // 2) + [0.0] * (count % 2)
        scale = deviation / math.sqrt(sum(end * end for end in ends) / (count - 1))
        return Estimate.of(*(1 + scale * end for end in ends))

    assert of_so_many(needed).sign() == 1
    assert of_so_many(max(2, needed * 2 // 3)).sign() == 0
    assert Estimate.of(1.0).seeds_to_tell() is None
