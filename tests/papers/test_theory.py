import math

import pytest
import torch

from evidence.papers import theory
from evidence.papers.outcome import Job
from evidence.papers.theory import (
    Cells,
    Check,
    attention_map,
    check_random_matrices,
    count_of,
    findings,
    fit,
    kappas,
    least_norm,
    map_bound,
    map_least,
    map_search,
    map_with_temperatures,
    mix,
    mixture_temperature,
    norm_of_logits,
    operator_norm,
    overshoot,
    run_lemma_1,
    run_proposition_1,
    run_proposition_2,
    share_of,
    spikiness_bound,
    spikiness_least,
    spikiness_search,
    spikiness_with_temperatures,
    unit_pairs,
)
from exsel.cli.display import RunLines
from papers.fakes import read_again


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def job(folder, seeds=(0,)):
    return Job(budget="smoke", device="cpu", seeds=seeds, data=(), folder=folder, progress=RunLines())


def test_a_bound_that_is_exceeded_is_a_violation():
    norm = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    held = Check.of(norm * 0.5, norm, 1e-12)
    assert (held.trials, held.violations, held.largest_ratio) == (3, 0, 0.5)
    wrong = Check.of(torch.tensor([0.5, 2.5, 1.0], dtype=torch.float64), norm, 1e-12)
    assert (wrong.violations, wrong.largest_ratio) == (1, 1.25)
    assert [finding.holds for finding in findings("x", (held, wrong))] == [False, None, False]
    assert [finding.holds for finding in findings("x", (held,))] == [True, None, True]


def test_nothing_to_compare_is_a_violation():
    assert Check.of(torch.tensor([float("nan")]), torch.ones(1), 1e-12).violations == 1


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
    monkeypatch.setattr(theory, "spikiness_bound", lambda *args: 2 * spikiness_bound(*args))
    assert check_random_matrices(300, torch.Generator().manual_seed(0)).violations > 0
    result = run_lemma_1(job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_lemma_1_smoke(tmp_path):
    first = run_lemma_1(job(tmp_path))
    assert first.verdict == "exact"
    assert run_lemma_1(job(tmp_path)) == first
    assert run_lemma_1(job(tmp_path, seeds=(1,))) != first
    assert read_again(first) == first


def cell(error, similarity, gamma):
    return Cells(
        **{
            name: torch.tensor([value], dtype=torch.float64)
            for name, value in (("error", error), ("similarity", similarity), ("gamma", gamma))
        }
    )


def test_bound_of_a_map_by_hand():
    # ρ = 0: √2⁻¹ · √2⁻¹ (log 25 − 0), and with γ = 1/5 Γ = log 4.
    assert map_bound(cell(0.01, 0.0, 0.5)).item() == pytest.approx(math.log(25) / 2)
    assert map_bound(cell(0.01, 0.0, 0.2)).item() == pytest.approx((math.log(25) - math.log(4)) / 2)


def test_least_norm_of_a_map_by_hand():
    # Orthogonal tokens, γ = 1/2: no first logit at all, log 99 for the second, along (e2 − e1) of length √2.
    assert map_least(cell(0.01, 0.0, 0.5)).item() == pytest.approx(math.log(99) / math.sqrt(2))


def test_map_of_logits():
    cells = cell(0.01, 0.5, 0.3)
    tokens = torch.stack(unit_pairs(cells.distance, torch.Generator().manual_seed(0)), dim=-2)
    across = tokens[:, 1] - tokens[:, 0]
    wanted = torch.tensor([[-1.5, 2.5]], dtype=torch.float64)
    vector = (torch.linalg.pinv(tokens) @ wanted.unsqueeze(-1)).squeeze(-1)
    weight = vector.unsqueeze(-1) * (across / across.square().sum()).unsqueeze(-2)
    shares = torch.sigmoid(wanted)
    torch.testing.assert_close(attention_map(weight, tokens)[..., 1], shares)
    torch.testing.assert_close(operator_norm(weight), norm_of_logits(wanted[:, 0], wanted[:, 1], cells))


def test_least_is_least_over_a_grid_of_logits():
    cells = cell(0.05, -0.6, 0.3)
    low, high, second = cells.allowed()
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    norms = norm_of_logits(low + (high - low) * grid.unsqueeze(-1), second * (1 + grid), cells)
    assert (norms >= map_least(cells) * (1 - 1e-12)).all()
    assert norms.min().item() == pytest.approx(map_least(cells).item(), rel=1e-3)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("similarity", [-0.9, 0.0, 0.9])
def test_maps_are_near_enough(similarity, gamma):
    cells = cell(1e-3, similarity, gamma)
    weight, tokens = map_search(cells, steps=300, generator=torch.Generator().manual_seed(0))
    assert (overshoot(weight, tokens, cells) <= 0).all()
    assert (overshoot(0.9 * weight, tokens, cells) > 0).all()
    torch.testing.assert_close(operator_norm(weight), map_least(cells), rtol=5e-3, atol=0)
    scaled, tau = map_with_temperatures(cells, tokens)
    assert (tau >= 0).all()
    assert (overshoot(scaled, tokens, cells, tau) <= 0).all()
    assert (tau.amax(-1) * operator_norm(scaled) <= map_least(cells) * (1 + 1e-9)).all()


def test_temperatures_save_the_factor_of_similarity_where_both_prefer_the_same():
    cells = cell(1e-4, 0.9, 0.8)
    tokens = torch.stack(unit_pairs(cells.distance, torch.Generator().manual_seed(0)), dim=-2)
    weight, tau = map_with_temperatures(cells, tokens)
    needed = (tau.amax(-1) * operator_norm(weight)).item()
    assert needed == pytest.approx(math.log(9999) / math.sqrt(0.2))


def test_a_doubled_bound_of_the_proposition_is_seen_to_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(theory, "map_bound", lambda cells: 2 * map_bound(cells))
    result = run_proposition_1(job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_proposition_1_smoke(tmp_path):
    first = run_proposition_1(job(tmp_path))
    assert first.verdict == "exact"
    assert run_proposition_1(job(tmp_path)) == first
    assert read_again(first) == first


def test_temperature_by_hand():
    # 3 of b for 1 of a: e^τ/(e^τ + 3) = 1/2 at τ = log 3, and log 4 more for 4/5.
    kappa = torch.tensor(3.0, dtype=torch.float64)
    assert mixture_temperature(kappa, 0.5).item() == pytest.approx(math.log(3))
    assert mixture_temperature(kappa, 0.8).item() == pytest.approx(math.log(12))


def test_attention_mixes_as_the_formula_says():
    a, b = unit_pairs(torch.tensor(1.0, dtype=torch.float64), torch.Generator().manual_seed(0))
    tau = torch.tensor(1.7, dtype=torch.float64)
    share = share_of(torch.tensor(6 / 2, dtype=torch.float64), tau)
    torch.testing.assert_close(mix(a, b, (2, 6), tau), share * a + (1 - share) * b)


def test_counts_come_near_the_power():
    assert count_of(4, 1.0) == 1
    assert count_of(65536, 0.5) == 255
    assert kappas((65536,), 0.5).item() == pytest.approx(256, rel=0.01)


def test_fits():
    length = torch.tensor([4.0, 64.0, 1024.0], dtype=torch.float64)
    kappa = length.sqrt()
    growing = fit("const + p log n", length, kappa, 0.8, 100)
    assert growing.tolist() == pytest.approx([math.log(4), 0.5], abs=1e-5)
    scale, logit = fit("c (1 + σ(a) log n)", length, kappa, 0.8, 100)
    assert (scale * torch.sigmoid(logit)).item() == pytest.approx(0.5, abs=1e-5)
    # For one length a constant is enough.
    constant = fit("constant", length[:1], kappa[:1], 0.8, 100)
    assert constant.item() == pytest.approx(math.log(2) + math.log(4), abs=1e-5)


def test_a_wrong_temperature_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(theory, "mixture_temperature", lambda *args: mixture_temperature(*args) + 1e-6)
    result = run_proposition_2(job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_proposition_2_smoke(tmp_path):
    first = run_proposition_2(job(tmp_path))
    assert first.verdict == "exact"
    assert run_proposition_2(job(tmp_path)) == first
    assert read_again(first) == first
