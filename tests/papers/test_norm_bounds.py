import pytest
import torch

from evidence.papers.norm_bounds import Check, least_norm, operator_norm, unit_pairs


def test_a_bound_that_is_exceeded_is_a_violation():
    norm = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    check = Check("x")
    check.hold(norm * 0.5, norm, 1e-12)
    assert (check.trials, check.violations, check.ratios) == ([3], [0], [0.5])
    assert [finding.holds for finding in check.findings()] == [True, None, True]
    check.hold(torch.tensor([0.5, 2.5, 1.0], dtype=torch.float64), norm, 1e-12)
    assert (check.violations, check.ratios) == ([0, 1], [0.5, 1.25])
    assert [finding.holds for finding in check.findings()] == [False, None, False]


def test_nothing_to_compare_is_a_violation():
    check = Check("x")
    check.hold(torch.tensor([float("nan")]), torch.ones(1), 1e-12)
    assert check.violations == [1]


def test_unit_pairs_are_as_far_apart_as_asked():
    distance = torch.tensor([1e-3, 0.5, 1.9], dtype=torch.float64)
    a, b = unit_pairs(distance, torch.Generator().manual_seed(0), 5)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(a.norm(dim=-1), one)
    torch.testing.assert_close(b.norm(dim=-1), one)
    torch.testing.assert_close((a - b).norm(dim=-1), distance)


def test_descent_reaches_the_least_norm_of_a_matrix_with_one_entry_given():
    free = torch.randn(3, 2, 2, dtype=torch.float64).requires_grad_()

    def build():
        rows = torch.stack((torch.full((3,), 2.0, dtype=torch.float64), free[:, 0, 1]), -1)
        return torch.stack((rows, free[:, 1]), -2)

    found = operator_norm(least_norm(build, (free,), 400))
    assert found == pytest.approx([2.0] * 3, rel=1e-3)
