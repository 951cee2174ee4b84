import dataclasses

import pytest

from evidence.papers.graph_model import MAIN, Setting
from evidence.papers.graph_task import Result, graph_outcome, run_graph
from evidence.papers.outcome import Job
from exsel.cli.display import RunLines
from exsel.intervals import Estimate
from papers.fakes import read_again

NARROW = Setting(dimension=4)


def result(plain, constant, selective, slope):
    by_variant = {
        "plain": [Estimate.of(*plain)],
        "constant temperature": [Estimate.of(*constant)],
        "selective": [Estimate.of(*selective)],
    }
    return Result(
        steps=(100,),
        excess=by_variant,
        map_error=by_variant,
        norm={variant: each[0] for variant, each in by_variant.items()},
        slope=Estimate.of(*slope),
        tau={1: Estimate.of(2.0, 2.1), 3: Estimate.of(1.0, 1.1)},
    )


GOOD = result((0.5, 0.6), (0.3, 0.4), (0.1, 0.2), (-0.5, -0.51))


@pytest.mark.parametrize(
    ("main", "verdict"),
    [
        (GOOD, "reproduced"),
        (result((0.5, 0.6), (0.1, 0.2), (0.1, 0.2), (-0.5, -0.51)), "partly"),
        (dataclasses.replace(GOOD, slope=Estimate.of(0.5, 0.51)), "partly"),
        (result((0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.5, 0.51)), "not reproduced"),
        (result((0.1,), (0.3,), (0.5,), (0.5,)), "unclear"),
    ],
    ids=["all", "one temperature does as well", "no order of temperatures", "worse", "one seed"],
)
def test_verdict(main, verdict):
    assert graph_outcome({MAIN: main, NARROW: GOOD}, size="small").verdict == verdict


def test_numbers_stand_beside_the_published():
    found = {finding.quantity: finding for finding in graph_outcome({MAIN: GOOD, NARROW: GOOD}, size="").findings}
    assert found["cross-entropy excess (nats), plain"].published == 0.0126
    assert found["ℓ1 error of the map, selective"].published == 0.358
    gain = found["cross-entropy excess, plain less selective (Claim 2)"]
    assert gain.ours.values == pytest.approx((0.4, 0.4))
    assert gain.published == pytest.approx(0.0036)
    assert gain.holds is True


def test_smoke(tmp_path):
    job = Job(budget="smoke", device="cpu", seeds=(0, 1), data=(), folder=tmp_path, progress=RunLines())
    first = run_graph(job)
    assert run_graph(job) == first
    assert read_again(first) == first
    # Both start at uniform attention, before any difference.
    plain, _, selective = first.charts[0].curves
    assert plain.y[0] == selective.y[0]
