import pytest
import torch

from evidence.papers import lemma_1
from evidence.papers.experiment import Job
from evidence.papers.lemma_1 import any_matrices, bound, least, run_lemma_1, search, with_temperatures
from evidence.papers.norm_bounds import operator_norm, unit_pairs
from exsel.cli.display import LineProgress
from papers.fakes import read_again


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def job(folder, seeds=(0,)):
    return Job(budget="smoke", device="cpu", seeds=seeds, data=(), folder=folder, progress=LineProgress())


def test_least_norm_by_hand():
    # Orthogonal a and b: W = a wᵀ is enough. With L_b = L_a = 1 so is the identity, whatever the distance.
    assert least(numbers(3.0), numbers(0.0), numbers(2.0).sqrt()) == pytest.approx(3)
    assert least(numbers(1.0), numbers(1.0), numbers(0.1)) == pytest.approx(1)
    # ρ = 1/2: the vector of products 1 and 0 with a and b is (a − b/2)/(3/4), of length 2/√3.
    assert least(numbers(1.0), numbers(0.0), numbers(1.0)) == pytest.approx(2 / 3**0.5)


def test_bound_is_tight_as_the_tokens_meet():
    distance = numbers(1.0, 0.1, 1e-3)
    ratio = bound(torch.ones(3), torch.zeros(3), distance) / least(torch.ones(3), torch.zeros(3), distance)
    torch.testing.assert_close(ratio, (1 - distance.square() / 4).sqrt())


def test_search_keeps_the_constraints_and_finds_the_least():
    distance, flat = numbers(0.1, 0.5, 1.0, 1.0), numbers(0.0, 0.25, 0.9, 0.0)
    spiky = torch.ones_like(flat)
    weight, a, b = search(spiky, flat, distance, steps=400, generator=torch.Generator().manual_seed(1))
    at_a, at_b = ((x.unsqueeze(-2) @ weight).squeeze(-2).norm(dim=-1) for x in (a, b))
    assert (at_a >= spiky - 1e-12).all()
    assert (at_b <= flat + 1e-12).all()
    torch.testing.assert_close(operator_norm(weight), least(spiky, flat, distance), rtol=1e-3, atol=0)


def test_temperatures_need_the_larger_of_the_two():
    a, b = unit_pairs(numbers(1e-3, 1.0), torch.Generator().manual_seed(0))
    norm, error = with_temperatures(numbers(5.0, 1.0), numbers(1.0, 2.0), a, b)
    assert norm.tolist() == pytest.approx([5, 2])
    assert error.max() < 1e-14


def test_a_doubled_bound_is_seen_to_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(lemma_1, "bound", lambda *args: 2 * bound(*args))
    assert any_matrices(300, torch.Generator().manual_seed(0)).violations > 0
    result = run_lemma_1(job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_smoke(tmp_path):
    first = run_lemma_1(job(tmp_path))
    assert first.verdict == "exact"
    assert run_lemma_1(job(tmp_path)) == first
    assert run_lemma_1(job(tmp_path, seeds=(1,))) != first
    assert read_again(first) == first
