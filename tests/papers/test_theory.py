import math

import pytest
import torch

from evidence.papers import theory
from evidence.papers.theory import (
    Demand,
    check_lemma_1,
    check_proposition_1,
    draw_tokens,
    fit,
    map_bound,
    map_demand,
    map_norms,
    mix,
    mixture_temperature,
    outcome_of,
    run_lemma_1,
    run_proposition_1,
    run_proposition_2,
    shares_of_second,
    spikiness_bound,
    weight_of,
    whole_counts,
    with_temperatures,
)
from papers.fakes import read_again, smoke_job

RUNS = {"lemma-1": run_lemma_1, "proposition-1": run_proposition_1, "proposition-2": run_proposition_2}


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


def least_spikiness_norm(spiky, flat, distance):
    demand = Demand(-flat, flat, spiky, distance)
    return demand.length(demand.products())


def findings_of(*seeds, job):
    draws = iter([each for seed in seeds for each in seed])
    return outcome_of(job, lambda *_: {"x": numbers(*next(draws))}, "{largest}", size="", charts=())


def test_a_ratio_above_1_is_a_violation(tmp_path):
    kept, broken = [[0.5], [0.25], [0.5]], [[0.5], [1.25, 1.0], [1.5]]
    holds = findings_of(kept, kept, job=smoke_job(tmp_path, seeds=(0, 1)))
    assert holds.verdict == "exact"
    assert holds.conclusion == "0.5"
    assert [finding.ours.values for finding in holds.findings] == [(0, 0), (3, 3), (0.5, 0.5)]
    assert [finding.holds for finding in holds.findings] == [True, None, True]
    fails = findings_of(kept, broken, job=smoke_job(tmp_path, seeds=(0, 1)))
    assert fails.verdict == "not reproduced"
    assert [finding.ours.values for finding in fails.findings] == [(0, 2), (3, 4), (0.5, 1.5)]
    assert [finding.holds for finding in fails.findings] == [False, None, False]


def test_what_is_not_a_number_is_a_violation(tmp_path):
    result = findings_of([[0.5], [math.nan], [0.5]], job=smoke_job(tmp_path))
    assert result.verdict == "not reproduced"
    assert result.findings[0].ours.values == (1,)


def test_tokens_are_unit_vectors_as_far_apart_as_asked():
    distance = numbers(1e-3, 0.5, 1.9)
    tokens = draw_tokens(distance, 5, generator())
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close((tokens[:, 0] - tokens[:, 1]).norm(dim=-1), distance)


def test_least_norm_of_two_spikinesses_by_hand():
    # Orthogonal a and b: W = a wᵀ is enough. With L_b = L_a = 1 so is the identity, whatever the distance.
    assert least_spikiness_norm(numbers(3.0), numbers(0.0), numbers(2.0).sqrt()) == pytest.approx(3)
    assert least_spikiness_norm(numbers(1.0), numbers(1.0), numbers(0.1)) == pytest.approx(1)
    # ρ = 1/2: the vector of products 1 and 0 with a and b is (a − b/2)/(3/4), of length 2/√3.
    assert least_spikiness_norm(numbers(1.0), numbers(0.0), numbers(1.0)) == pytest.approx(2 / 3**0.5)


def test_bound_is_tight_as_the_tokens_meet():
    distance, one, zero = numbers(1.0, 0.1, 1e-3), torch.ones(3), torch.zeros(3)
    ratio = spikiness_bound(one, zero, distance) / least_spikiness_norm(one, zero, distance)
    torch.testing.assert_close(ratio, (1 - distance.square() / 4).sqrt())


def test_bound_of_a_map_by_hand():
    # ρ = 0: √2⁻¹ · √2⁻¹ (log 25 − 0), and with γ = 1/5 Γ = log 4.
    bounds = map_bound(numbers(0.01), numbers(0.5, 0.2), numbers(2.0).sqrt())
    assert bounds.tolist() == pytest.approx([math.log(25) / 2, (math.log(25) - math.log(4)) / 2])


def test_least_norm_of_a_map_by_hand():
    # Orthogonal tokens, γ = 1/2: no first logit at all, log 99 for the second, along (e2 − e1) of length √2.
    assert map_norms(0.01, 0.0, 0.5)["least"].item() == pytest.approx(math.log(99) / math.sqrt(2))


def test_map_of_logits():
    distance, wanted = numbers(1.0), numbers(-1.5, 2.5).unsqueeze(0)
    tokens = draw_tokens(distance, 4, generator())
    weight = weight_of(wanted, tokens, tokens[:, 1] - tokens[:, 0])
    shares = shares_of_second(weight, tokens, torch.ones_like(wanted))
    torch.testing.assert_close(shares, torch.sigmoid(wanted))
    length = map_demand(numbers(0.01), numbers(0.3), distance).length(wanted)
    torch.testing.assert_close(torch.linalg.matrix_norm(weight, ord=2), length / distance)


def test_shortest_vector_is_shortest_over_a_grid_of_products():
    demand = map_demand(numbers(0.05), numbers(0.3), numbers(3.2).sqrt())
    share = torch.linspace(0, 1, 201, dtype=torch.float64)
    first, second = torch.broadcast_tensors(
        torch.lerp(demand.low, demand.high, share).unsqueeze(-1), demand.least * (1 + share)
    )
    lengths, least = demand.length(torch.stack((first, second), dim=-1)), demand.length(demand.products())
    assert (lengths >= least * (1 - 1e-12)).all()
    assert lengths.min().item() == pytest.approx(least.item(), rel=1e-3)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("similarity", [-0.9, 0.0, 0.9])
def test_maps_are_just_near_enough(similarity, gamma):
    error, distance = numbers(1e-3), numbers(2 - 2 * similarity).sqrt()
    demand, tokens = map_demand(error, numbers(gamma), distance), draw_tokens(distance, 4, generator())
    across, target = tokens[:, 1] - tokens[:, 0], numbers(gamma, 1.0)
    weight = weight_of(demand.products(), tokens, across)
    products, tau = with_temperatures(demand)
    scaled = weight_of(products, tokens, across)

    def furthest(matrix, temperatures):
        return (shares_of_second(matrix, tokens, temperatures) - target).abs().max().item()

    assert furthest(weight, torch.ones_like(tau)) == pytest.approx(1e-3, abs=1e-12)
    assert furthest(0.9 * weight, torch.ones_like(tau)) > 1.5e-3
    assert (tau >= 0).all()
    assert furthest(scaled, tau) == pytest.approx(1e-3, abs=1e-12)


def test_temperatures_save_the_factor_of_similarity_where_both_prefer_the_same():
    needed = map_norms(1e-4, 0.9, 0.8)["with temperatures"].item()
    assert needed == pytest.approx(math.log(9999) / math.sqrt(0.2))


@pytest.mark.parametrize(("bound", "run"), [("spikiness_bound", run_lemma_1), ("map_bound", run_proposition_1)])
def test_a_doubled_bound_is_seen_to_fail(monkeypatch, tmp_path, bound, run):
    stated = getattr(theory, bound)
    monkeypatch.setattr(theory, bound, lambda *setting: 2 * stated(*setting))
    result = run(smoke_job(tmp_path))
    assert result.verdict == "not reproduced"
    failed = [finding.quantity for finding in result.findings if finding.holds is False]
    assert "largest ratio: bound / ‖W‖ of random W" in failed


@pytest.mark.parametrize("check", [check_lemma_1, check_proposition_1])
@pytest.mark.parametrize(
    ("factor", "seen_by"),
    [
        (1.001, {"least ‖W‖ / proven lower bound of every ‖W‖"}),
        (0.999, {"‖W‖ of the explicit W / least ‖W‖"}),
    ],
)
def test_a_least_norm_that_is_a_thousandth_off_is_seen(monkeypatch, check, factor, seen_by):
    length = Demand.length
    monkeypatch.setattr(Demand, "length", lambda self, products: factor * length(self, products))
    ratios = check(300, 2, generator())
    assert seen_by <= {name for name, ratio in ratios.items() if (ratio > 1).any()}


@pytest.mark.parametrize("check", [check_lemma_1, check_proposition_1])
@pytest.mark.parametrize("factor", [-1.0, 1.01])
def test_a_vector_that_is_not_the_shortest_proves_less(monkeypatch, check, factor):
    products = Demand.products
    monkeypatch.setattr(Demand, "products", lambda self: products(self) * numbers(1.0, factor))
    assert (check(300, 2, generator())["least ‖W‖ / proven lower bound of every ‖W‖"] > 1).any()


def test_no_random_vector_is_shorter_than_the_certificate_says():
    distance = 10 ** theory.uniform(-2, 0.29, 1000, generator())
    tokens, x = draw_tokens(distance, 3, generator()), torch.randn(1000, 3, dtype=torch.float64, generator=generator())
    first, second = (tokens @ x.unsqueeze(-1)).squeeze(-1).unbind(-1)
    sign, slack = second.sign(), theory.uniform(0, 1, 1000, generator())
    demand = Demand(sign * first - slack, sign * first + slack, second.abs(), distance)
    ratio = demand.certificate(tokens) / x.norm(dim=-1)
    assert ratio.max() <= 1 + 1e-12
    assert ratio.max() > 0.99


def test_temperature_by_hand():
    # 3 of b for 1 of a: e^τ/(e^τ + 3) = 1/2 at τ = log 3, and log 4 more for 4/5.
    kappa = numbers(3.0)
    assert mixture_temperature(kappa, 0.5).item() == pytest.approx(math.log(3))
    assert mixture_temperature(kappa, 0.8).item() == pytest.approx(math.log(12))


def test_attention_mixes_as_the_formula_says():
    a, b = pair = draw_tokens(numbers(1.0), 4, generator())[0]
    tau = numbers(1.7)
    share = 1 / (1 + 6 / 2 * (-tau).exp())
    torch.testing.assert_close(mix(pair, (2, 6), tau), share * a + (1 - share) * b)


def test_counts_come_near_the_power():
    assert whole_counts(numbers(4.0), 1.0)[0] == 1
    count, kappa = whole_counts(numbers(65536.0), 0.5)
    assert count == 255
    assert kappa.item() == pytest.approx(256, rel=0.01)


def test_fits():
    length = numbers(4.0, 64.0, 1024.0)
    kappa = length.sqrt()
    growing, shares = fit("const + p log n", length, kappa, 0.8)
    assert growing.tolist() == pytest.approx([math.log(4), 0.5], abs=1e-5)
    assert shares.tolist() == pytest.approx([0.8] * 3)
    (scale, logit), _ = fit("c (1 + σ(a) log n)", length, kappa, 0.8)
    assert (scale * torch.sigmoid(logit)).item() == pytest.approx(0.5, abs=1e-5)
    # For one length a constant is enough.
    (constant, _), _ = fit("constant", length[:1], kappa[:1], 0.8)
    assert constant.item() == pytest.approx(math.log(2) + math.log(4), abs=1e-5)


def test_a_wrong_temperature_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(theory, "mixture_temperature", lambda *args: mixture_temperature(*args) + 1e-6)
    result = run_proposition_2(smoke_job(tmp_path))
    assert result.verdict == "not reproduced"
    assert [finding.holds for finding in result.findings[:4]] == [False, None, False, False]


@pytest.mark.parametrize("name", RUNS)
def test_smoke(name, tmp_path):
    first = RUNS[name](smoke_job(tmp_path))
    assert first.verdict == "exact"
    assert RUNS[name](smoke_job(tmp_path)) == first
    assert RUNS[name](smoke_job(tmp_path, seeds=(1,))) != first
    assert read_again(first) == first
