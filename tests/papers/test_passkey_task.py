import json
from pathlib import Path

import pytest

from evidence.papers.outcome import Job
from evidence.papers.passkey_task import SHARE, TRAINED_LENGTHS, VARIANTS, passkey_data, passkey_outcome, run_passkey
from exsel.cli.display import RunLines
from exsel.evaluation.retrieval import PasskeyResult
from papers.fakes import read_again


def found(*correct):
    return PasskeyResult(lengths=(128, 256), depths=(0.0, 1.0), samples=10, seed=0, correct=correct)


def outcome(plain, selective, exclusive=None):
    """What is said where the other variants find what the plain model finds."""
    own = {"baseline": plain, "selective": selective, "exclusive": exclusive or plain}
    return passkey_outcome({variant.name: own.get(variant.name, plain) for variant in VARIANTS}, size="small")


def test_gains_are_paired_by_seed():
    plain = [found((5, 5), (0, 0)), found((7, 7), (2, 2)), found((6, 6), (1, 1))]
    selective = [found((8, 8), (3, 3)), found((10, 10), (5, 5)), found((9, 9), (4, 4))]
    exclusive = [found((3, 3), (0, 0)), found((5, 5), (0, 0)), found((4, 4), (0, 0))]
    result = outcome(plain, selective, exclusive)
    gain, loss = result.findings[:2]
    assert (gain.ours.values, gain.holds) == (pytest.approx((0.3, 0.3, 0.3)), True)
    assert (loss.ours.values, loss.holds) == (pytest.approx((-0.1, -0.2, -0.15)), False)
    assert [each.quantity for each in result.findings[:4]] == [
        f"gain of {variant.label} over the baseline, share of passkeys found" for variant in VARIANTS[1:]
    ]
    assert result.verdict == "reproduced"  # it is the selective paper's claim
    assert "selective finds more keys than plain attention (65.0%); exclusive finds fewer keys" in result.conclusion
    assert result.tables[0].rows[0][:2] == ("baseline", "0.600 (0.352 to 0.848)")


@pytest.mark.parametrize(
    ("selective", "verdict"),
    [([(1, 1), (2, 1)], "not reproduced"), ([(9, 9), (1, 0)], "unclear")],
    ids=["worse", "this way and that"],
)
def test_verdict_follows_the_interval(selective, verdict):
    plain = [found((5, 5), (5, 5)), found((6, 5), (5, 5))]
    assert outcome(plain, [found(first, first) for first in selective]).verdict == verdict


def test_one_seed_decides_nothing():
    result = outcome([found((0, 0), (0, 0))], [found((9, 9), (9, 9))])
    assert (result.verdict, result.findings[0].holds) == ("unclear", None)
    assert result.charts[0].curves[0].low is None


def test_a_quarter_of_the_data_is_text(tmp_path):
    corpus, *keys = passkey_data((), tmp_path, 400_000)
    lines = Path(corpus).read_text(encoding="utf-8").splitlines()
    size = sum(len(json.loads(line)["text"].encode()) for line in lines)
    assert [key.split(",")[0] for key in keys] == [f"passkey:length={length}" for length in TRAINED_LENGTHS]
    counts = [int(key.rpartition("=")[2]) for key in keys]
    made = sum(count * length for count, length in zip(counts, TRAINED_LENGTHS, strict=True))
    # Whole files only: the last one may go beyond.
    assert made == pytest.approx(SHARE * 480_000, rel=0.01)
    assert 0.25 * 480_000 <= size < 0.25 * 480_000 + 400_000
    assert passkey_data(("own.txt",), tmp_path, 400_000)[0] == "own.txt"


def test_smoke(tmp_path):
    job = Job(budget="smoke", device="cpu", seeds=(0,), data=(), folder=tmp_path / "work", progress=RunLines())
    first = run_passkey(job)
    assert read_again(first) == first
    assert first.findings[-1].ours.mean == 0.0  # three steps find no key
    changed = {path: path.stat().st_mtime_ns for path in job.folder.rglob("model.safetensors")}
    assert len(changed) == 1 + len(VARIANTS)
    assert run_passkey(job) == first  # what is finished is found again
    assert changed == {path: path.stat().st_mtime_ns for path in changed}
