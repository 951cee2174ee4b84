import json
from pathlib import Path

import pytest

from evidence.papers.outcome import Job
from evidence.papers.passkey_task import SHARE, TRAINED_LENGTHS, passkey_data, passkey_outcome, run_passkey
from exsel.cli.display import RunLines
from exsel.evaluation.retrieval import PasskeyResult
from papers.fakes import read_again


def found(*correct):
    return PasskeyResult(lengths=(128, 256), depths=(0.0, 1.0), samples=10, seed=0, correct=correct)


def test_gain_is_paired_by_seed():
    plain = [found((5, 5), (0, 0)), found((7, 7), (2, 2)), found((6, 6), (1, 1))]
    selective = [found((8, 8), (3, 3)), found((10, 10), (5, 5)), found((9, 9), (4, 4))]
    result = passkey_outcome({"plain": plain, "selective": selective}, size="small")
    gain = result.findings[-1]
    assert gain.ours.values == pytest.approx((0.3, 0.3, 0.3))
    assert gain.holds is True
    assert result.verdict == "reproduced"
    assert "65.0% against 35.0%" in result.conclusion


@pytest.mark.parametrize(
    ("selective", "verdict"),
    [([(1, 1), (2, 1)], "not reproduced"), ([(9, 9), (1, 0)], "unclear")],
    ids=["worse", "this way and that"],
)
def test_verdict_follows_the_interval(selective, verdict):
    plain = [found((5, 5), (5, 5)), found((6, 5), (5, 5))]
    other = [found(first, first) for first in selective]
    assert passkey_outcome({"plain": plain, "selective": other}, size="").verdict == verdict


def test_one_seed_decides_nothing():
    result = passkey_outcome({"plain": [found((0, 0), (0, 0))], "selective": [found((9, 9), (9, 9))]}, size="")
    assert (result.verdict, result.findings[-1].holds) == ("unclear", None)
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
    assert first.findings[0].ours.mean == 0.0  # three steps find no key
    changed = {path: path.stat().st_mtime_ns for path in job.folder.rglob("model.safetensors")}
    assert len(changed) == 3
    assert run_passkey(job) == first  # what is finished is found again
    assert changed == {path: path.stat().st_mtime_ns for path in changed}
