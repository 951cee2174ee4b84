import math
import random
import statistics

import pytest

from evidence.papers.bias import bias_outcome, run_bias
from evidence.papers.outcome import Job
from evidence.papers.spikiness import run_spikiness, spikiness_outcome
from evidence.papers.temperatures import class_of, explained_share, run_temperatures, temperatures_outcome
from exsel.cli.display import RunLines


def layer(**means):
    return {"metrics": {name: {"mean": mean} for name, mean in means.items()}}


def plain(shift=0.0, first=0.4, last=0.8):
    return [
        layer(similarity=similarity + shift, value_similarity=0.1, centred_similarity=0.2, self_weight=0.05)
        for similarity in (first, last)
    ]


def exclusive(after=0.0):
    return [layer(similarity=0.5, similarity_after=after) for _ in range(2)]


SHIFTS = (0.0, 0.01, -0.01)


def test_bias_that_grows_is_reproduced():
    outcome = bias_outcome([plain(shift) for shift in SHIFTS], [exclusive()] * 3, size="")
    findings = {finding.quantity: finding for finding in outcome.findings}
    assert outcome.verdict == "reproduced"
    assert findings["mean cos(yᵢ, vᵢ), plain"].ours.mean == pytest.approx(0.6)
    assert findings["cos(yᵢ, vᵢ), last layer less first"].ours.values == pytest.approx((0.4,) * 3)
    assert findings["mean cos(zᵢ, vᵢ), exclusive"].holds is True
    assert outcome.charts[0].curves[0].y == pytest.approx((0.4, 0.8))
    assert "0.60 where two values have 0.10, from 0.40 in the first layer to 0.80 in the last" in outcome.conclusion


@pytest.mark.parametrize(
    ("first", "last", "verdict"), [(0.8, 0.4, "partly"), (0.05, 0.02, "not reproduced")], ids=["shrinks", "absent"]
)
def test_bias_that_is_otherwise_is_said_so(first, last, verdict):
    models = [plain(shift, first, last) for shift in SHIFTS]
    assert bias_outcome(models, [exclusive()] * 3, size="").verdict == verdict


def test_a_projection_that_leaves_something_is_seen():
    outcome = bias_outcome([plain(shift) for shift in SHIFTS], [exclusive(after=0.01)] * 3, size="")
    assert outcome.findings[-1].holds is False


def test_spikiness_and_norms():
    before = [[layer(spikiness=0.4 + shift, token_norm=6.0, operator_norm=9.0)] for shift in SHIFTS]
    after = [[layer(spikiness=0.3 + shift, token_norm=2.0 + shift, operator_norm=3.0)] for shift in SHIFTS]
    outcome = spikiness_outcome(before, after, size="")
    findings = {finding.quantity: finding for finding in outcome.findings}
    assert outcome.verdict == "reproduced"
    assert findings["‖Wᵀx‖, plain over selective"].ours.mean == pytest.approx(3.0, rel=1e-3)
    assert findings["‖W_q W_kᵀ‖, plain over selective"].ours.mean == pytest.approx(3.0)
    assert spikiness_outcome(after, before, size="").verdict == "not reproduced"
    assert spikiness_outcome(before[:1], after[:1], size="").verdict == "unclear"


def test_explained_share_is_one_for_groups_without_spread_and_zero_by_chance():
    assert explained_share({"a": [1.0, 1.0], "b": [2.0, 2.0, 2.0]}) == 1.0
    assert explained_share({"a": [1.0], "b": [2.0]}) == 0.0
    assert explained_share({"a": [1.0, 1.0]}) == 0.0
    chance = random.Random(0)
    shares = [
        explained_share({group: [chance.gauss(0, 1) for _ in range(5)] for group in "abcdefgh"}) for _ in range(400)
    ]
    # The mean of 400 shares whose spread is measured here: within four standard errors of 0.
    assert abs(statistics.fmean(shares)) < 4 * statistics.stdev(shares) / math.sqrt(400)


def test_temperatures_by_token():
    def picture(shift):
        tokens = ["e", " "] * 30
        heads = [[(1.2 if token == "e" else 0.8) + shift + 0.001 * (index % 3) for index, token in enumerate(tokens)]]
        values = {"query_temperature": heads, "value_temperature": [[1.0 + 0.001 * (i % 7) for i in range(60)]]}
        return [{"tokens": tokens, "layers": [{"layer": 0, "values": values}]}]

    outcome = temperatures_outcome([picture(shift) for shift in SHIFTS], size="")
    assert outcome.findings[0].ours.mean > 0.99
    assert outcome.verdict == "partly"  # of the values' temperatures the token explains nothing
    assert [row[0] for row in outcome.tables[0].rows] == ["' '", "'e'"]
    assert outcome.tables[0].rows[1][1:] == ("1.2010", "1.0029", "90")
    assert outcome.charts[0].categories == ("letters", "spaces")


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("é", "letters"),
        ("7", "digits"),
        ("\n", "line ends"),
        ("\t", "other tokens"),
        ("::", "other tokens"),
        ("=", "other marks"),
    ],
)
def test_classes(token, name):
    assert class_of(token) == name


@pytest.mark.parametrize("run", [run_bias, run_spikiness, run_temperatures], ids=lambda run: run.__name__)
def test_smoke(run, tmp_path):
    job = Job(budget="smoke", device="cpu", seeds=(0,), data=(), folder=tmp_path, progress=RunLines())
    outcome = run(job)
    assert all(math.isfinite(finding.ours.mean) for finding in outcome.findings)
    assert outcome.size
