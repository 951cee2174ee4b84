import pytest
import torch

from evidence.papers.denoising import (
    BAYES,
    ESTIMATORS,
    LENGTH,
    NAIVE,
    NOISE,
    PLAIN,
    SELECTIVE,
    Heads,
    attend_last,
    closed_share,
    denoising_outcome,
    loss_of,
    run_denoising,
    sample,
    train_heads,
    value_selector,
)
from evidence.papers.outcome import Job
from exsel.cli.display import RunLines
from exsel.intervals import Estimate
from papers.fakes import read_again


def drawn(noise, count=500, length=32, seed=0):
    return sample(count, length, torch.tensor([noise]), torch.Generator().manual_seed(seed))


def test_loss_by_hand():
    target = torch.tensor([1.0, 0.0])
    estimates = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])
    assert loss_of(estimates, target).tolist() == pytest.approx([0, 2, 4, 1])


def test_sequences_are_as_the_task_says():
    sequences = drawn(0.1, count=2000)
    assert sequences.is_signal[..., -1].all()
    assert sequences.is_signal[..., :-1].float().mean().item() == pytest.approx(0.25, abs=0.01)
    noise = sequences.tokens - sequences.target.unsqueeze(-2) * sequences.is_signal.unsqueeze(-1)
    assert noise.std().item() == pytest.approx(0.1, rel=0.01)
    assert (sequences.target.sum(-1) == 1).all()


def test_attention_by_brute_force():
    tokens = drawn(0.5, count=3, length=5).tokens.double()
    scale = torch.rand(3, 1, 5, dtype=torch.float64)
    for x, tau, got in zip(tokens[:, 0], scale[:, 0], attend_last(tokens, 2.0, scale)[:, 0], strict=True):
        weights = torch.softmax(torch.stack([2.0 * x[-1] @ each for each in x]), dim=0)
        torch.testing.assert_close(got, sum(w * t * each for w, t, each in zip(weights, tau, x, strict=True)))


def test_no_scale_is_the_naive_mean():
    tokens = drawn(0.5).tokens
    torch.testing.assert_close(attend_last(tokens, 0.0), tokens.mean(-2))


def test_selector_is_right_without_noise_and_not_with_much():
    quiet, loud = drawn(0.05), drawn(1.0)
    assert torch.equal(value_selector(quiet.tokens).bool(), quiet.is_signal)
    assert (value_selector(loud.tokens).bool() != loud.is_signal).float().mean() > 0.3


def test_heads_begin_as_attention_and_only_the_selective_one_learns_temperatures():
    tokens = drawn(0.3, count=4).tokens.expand(-1, 2, -1, -1)
    heads = Heads(2, is_selective=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(heads(tokens), attend_last(tokens, 1.0), rtol=1e-4, atol=1e-5)
    noise = torch.tensor([0.1, 0.5])
    plain, selective = (train_heads(noise, is_selective=each, steps=3, batch=4, seed=0) for each in (False, True))
    assert plain.weight.abs().max() == 0
    assert (selective.weight.abs() > 0).any(-1).all()
    again = train_heads(noise, is_selective=True, steps=3, batch=4, seed=0)
    assert torch.equal(again.v_proj, selective.v_proj)


def test_training_helps():
    noise = torch.tensor([0.3])
    tested = sample(500, LENGTH, noise, torch.Generator().manual_seed(1))
    start, end = (
        loss_of(
            train_heads(noise, is_selective=True, steps=steps, batch=16, seed=0)(tested.tokens), tested.target
        ).mean()
        for steps in (0, 60)
    )
    assert end < start


def results(plain, selective):
    base = {NAIVE: 1.0, BAYES: 0.0, PLAIN: plain, SELECTIVE: selective}
    cell = {
        name: Estimate.of(*(base.get(name, 0.5) + (shift if name == PLAIN else 0.0) for shift in (0.0, 0.001)))
        for name in ESTIMATORS
    }
    return {(NOISE, LENGTH): cell, (NOISE, 8): cell}


def test_share_of_the_gap():
    found = results(0.75, 0.02)
    assert closed_share(found, SELECTIVE, NOISE, LENGTH).values == pytest.approx((0.98, 0.98))
    assert closed_share(found, PLAIN, NOISE, LENGTH).values == pytest.approx((0.25, 0.249))


@pytest.mark.parametrize(
    ("plain", "selective", "verdict"),
    [(0.95, 0.02, "reproduced"), (0.3, 0.02, "partly"), (0.3, 0.5, "not reproduced")],
)
def test_verdict(plain, selective, verdict):
    assert denoising_outcome(results(plain, selective), size="").verdict == verdict


def test_smoke(tmp_path):
    job = Job(budget="smoke", device="cpu", seeds=(0, 1), data=(), folder=tmp_path, progress=RunLines())
    first = run_denoising(job)
    assert run_denoising(job) == first
    assert read_again(first) == first
