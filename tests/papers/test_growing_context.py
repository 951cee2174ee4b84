import math

import pytest
import torch

from evidence.papers import growing_context
from evidence.papers.growing_context import count_of, fit, kappas, mix, mixture_temperature, run_proposition_2, share_of
from evidence.papers.norm_bounds import unit_pairs
from papers.fakes import read_again, smoke_job


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
    growing, _ = fit("const + p log n", length, kappa, 0.8, 100)
    assert growing.tolist() == pytest.approx([math.log(4), 0.5], abs=1e-5)
    (scale, logit), _ = fit("c (1 + σ(a) log n)", length, kappa, 0.8, 100)
    assert (scale * torch.sigmoid(logit)).item() == pytest.approx(0.5, abs=1e-5)
    # For one length a constant is enough.
    constant, _ = fit("constant", length[:1], kappa[:1], 0.8, 100)
    assert constant.item() == pytest.approx(math.log(2) + math.log(4), abs=1e-5)


def test_a_wrong_temperature_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(growing_context, "mixture_temperature", lambda *args: mixture_temperature(*args) + 1e-6)
    result = run_proposition_2(smoke_job(tmp_path))
    assert result.verdict == "not reproduced"
    assert any(finding.holds is False for finding in result.findings)


def test_proposition_2_smoke(tmp_path):
    first = run_proposition_2(smoke_job(tmp_path))
    assert first.verdict == "exact"
    assert run_proposition_2(smoke_job(tmp_path)) == first
    assert read_again(first) == first
