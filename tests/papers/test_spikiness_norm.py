import pytest
import torch

from evidence.papers import spikiness_norm
from evidence.papers.norm_bounds import Check, operator_norm, unit_pairs
from evidence.papers.spikiness_norm import (
    random_matrices,
    run_lemma_1,
    spikiness_bound,
    spikiness_least,
    spikiness_search,
    spikiness_with_temperatures,
)
from papers.fakes import read_again, smoke_job


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_least_norm_of_two_spikinesses_by_hand():
    # Orthogonal a and b: W = a wᵀ is enough. With L_b = L_a = 1 so is the identity, whatever the distance.
    assert spikiness_least(numbers(3.0), numbers(0.0), numbers(2.0).sqrt()) == pytest.approx(3)
    assert spikiness_least(numbers(1.0), numbers(1.0), numbers(0.1)) == pytest.approx(1)
    # ρ = 1/2: the vector of products 1 and 0 with a and b is (a − b/2)/(3/4), of length 2/√3.
    assert spikiness_least(numbers(1.0), numbers(0.0), numbers(1.0)) == pytest.approx(2 / 3**0.5)


def test_bound_is_tight_as_the_tokens_meet():
    distance = numbers(1.0, 0.1, 1e-3)
    ratio = spikiness_bound(torch.ones(3), torch.zeros(3), distance) / spikiness_least(
        torch.ones(3), torch.zeros(3), distance
    )
    torch.testing.assert_close(ratio, (1 - distance.square() / 4).sqrt())


def test_search_keeps_the_constraints_and_finds_the_least():
    distance, flat = numbers(0.1, 0.5, 1.0, 1.0), numbers(0.0, 0.25, 0.9, 0.0)
    spiky = torch.ones_like(flat)
    weight, a, b = spikiness_search(spiky, flat, distance, steps=400, generator=torch.Generator().manual_seed(1))
    at_a, at_b = ((x.unsqueeze(-2) @ weight).squeeze(-2).norm(dim=-1) for x in (a, b))
    assert (at_a >= spiky - 1e-12).all()
    assert (at_b <= flat + 1e-12).all()
    torch.testing.assert_close(operator_norm(weight), spikiness_least(spiky, flat, distance), rtol=1e-3, atol=0)


def test_temperatures_need_the_larger_of_the_two():
    a, b = unit_pairs(numbers(1e-3, 1.0), torch.Generator().manual_seed(0))
    norm, error = spikiness_with_temperatures(numbers(5.0, 1.0), numbers(1.0, 2.0), a, b)
    assert norm.tolist() == pytest.approx([5, 2])
    assert error.max() < 1e-14


def test_a_doubled_bound_of_the_lemma_is_seen_to_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(spikiness_norm, "spikiness_bound", lambda *args: 2 * spikiness_bound(*args))
    check = Check("random W")
    check.hold(*random_matrices(300, torch.Generator().manual_seed(0)))
    assert check.violations[0] > 0
    result = run_lemma_1(smoke_job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_lemma_1_smoke(tmp_path):
    first = run_lemma_1(smoke_job(tmp_path))
    assert first.verdict == "exact"
    assert run_lemma_1(smoke_job(tmp_path)) == first
    assert run_lemma_1(smoke_job(tmp_path, seeds=(1,))) != first
    assert read_again(first) == first
