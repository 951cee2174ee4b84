import pytest
import torch

from evidence.papers import copying
from evidence.papers.copying import (
    LENGTH,
    LONGEST,
    PAIRS,
    QUANTITIES,
    SHORTEST,
    Learned,
    copying_outcome,
    draw_induction,
    draw_recall,
    run_induction,
    run_recall,
    train,
)
from evidence.papers.model_variants import BASELINE, EXCLUSIVE
from evidence.papers.outcome import Job
from exsel.cli.display import RunLines
from papers.fakes import read_again


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("draw", [draw_induction, draw_recall])
def test_a_copy_is_what_lies_so_far_back(draw):
    copies = draw(50, generator())
    assert copies.tokens.shape == copies.distance.shape == (50, LENGTH)
    rows, places = copies.distance.nonzero(as_tuple=True)
    back = places - copies.distance[rows, places]
    assert torch.equal(copies.tokens[rows, places], copies.tokens[rows, back])
    assert torch.equal(copies.targets >= 0, copies.distance[:, 1:] > 0)
    # What stands before the copy stands before the token too: attention can find it by that.
    assert torch.equal(copies.tokens[rows, places - 1][back > 0], copies.tokens[rows, back - 1][back > 0])


def test_induction_has_no_fixed_distance():
    copies = draw_induction(500, generator())
    assert sorted(set(copies.distance.unique().tolist()) - {0}) == list(range(SHORTEST, LONGEST + 1))
    for tokens, distance in zip(copies.tokens, copies.distance.amax(-1), strict=True):
        assert len(tokens[:distance].unique()) == distance


def test_recall_asks_for_every_value_once():
    copies = draw_recall(20, generator())
    pairs, asked = copies.tokens.view(20, 2, PAIRS, 2).unbind(1)
    for one, other in zip(pairs.tolist(), asked.tolist(), strict=True):
        assert sorted(one) == sorted(other)
        assert len({key for key, _ in one}) == PAIRS
    assert ((copies.distance > 0).sum(-1) == PAIRS).all()


def learned(*accuracy):
    return Learned(steps=(1, 2), accuracy=accuracy, by_distance=(0.5, 0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("exclusive", "verdict", "word"),
    [
        ([(0.5, 0.9), (0.6, 0.91)], "reproduced", "better"),
        ([(0.1, 0.2), (0.15, 0.21)], "not reproduced", "worse"),
        ([(0.2, 0.8), (0.5, 0.5)], "unclear", "not told apart"),
    ],
)
def test_verdict(exclusive, verdict, word):
    plain = [learned(0.3, 0.6), learned(0.35, 0.61)]
    results = {(2, BASELINE.label): plain, (2, EXCLUSIVE.label): [learned(*each) for each in exclusive]}
    outcome = copying_outcome(results, size="")
    assert outcome.verdict == verdict
    assert word in outcome.conclusion.replace("is told apart", "is not told apart")
    assert len(outcome.findings) == len(QUANTITIES)


@pytest.mark.parametrize("run", [run_induction, run_recall])
def test_smoke(run, tmp_path, monkeypatch):
    job = Job(budget="smoke", device="cpu", seeds=(0, 1), data=(), folder=tmp_path, progress=RunLines())
    first = run(job)
    assert read_again(first) == first
    min(tmp_path.iterdir()).unlink()
    trained = []

    def count(*args, **options):
        trained.append(options)
        return train(*args, **options)

    monkeypatch.setattr(copying, "train", count)
    assert run(job) == first
    assert len(trained) == 1, "the others are kept"
