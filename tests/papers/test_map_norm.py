import math

import pytest
import torch

from evidence.papers import map_norm
from evidence.papers.map_norm import (
    Cells,
    attention_map,
    map_bound,
    map_least,
    map_search,
    map_with_temperatures,
    norm_of_logits,
    overshoot,
    run_proposition_1,
)
from evidence.papers.norm_bounds import operator_norm, unit_pairs
from papers.fakes import read_again, smoke_job


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
    monkeypatch.setattr(map_norm, "map_bound", lambda cells: 2 * map_bound(cells))
    result = run_proposition_1(smoke_job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_proposition_1_smoke(tmp_path):
    first = run_proposition_1(smoke_job(tmp_path))
    assert first.verdict == "exact"
    assert run_proposition_1(smoke_job(tmp_path)) == first
    assert read_again(first) == first
