"""Several processes give what one gives, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.files import check_sealed, read_json
from exsel.training.output_folder import checkpoints
from exsel.training.processes import Processes
from exsel.training.run import check_shared, train_run
from exsel.training.saved_models import load_whole
from training.small_runs import (
    SEQ_LEN,
    Watcher,
    everything_at_once,
    float64_model,
    metrics,
    small_data,
    small_settings,
    without_times,
    write_corpus,
    write_model,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def test_what_processes_cannot_share_is_refused(model_file: Path) -> None:
    with pytest.raises(ExselError, match="4 sequences at a time, which 3 processes cannot share"):
        check_shared(small_settings(model_file), Processes(count=3))
    with pytest.raises(ExselError, match="--shard divides the model among several processes"):
        check_shared(small_settings(model_file, shard=True), Processes())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of ``two_processes.py``, and beside them the same run in one process."""
    home = tmp_path_factory.mktemp("processes")
    write_corpus(home / "corpus")
    write_model(home / "model.json", sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    script = Path(__file__).with_name("two_processes.py")
    outcome = subprocess.run([*TORCHRUN, script, home], capture_output=True, text=True, env=ENVIRONMENT)
    assert outcome.returncode == 0, outcome.stderr
    alone(home, "alone")
    return home


def alone(home: Path, name: str, **changes: object) -> None:
    settings, data = everything_at_once(home / "model.json", **changes), small_data(home / "corpus", pack="isolate")
    model = float64_model(settings, data)
    train_run(settings, data, home / name, name=name, progress=Watcher(), resume=True, model=model)


def assert_equal(folder: Path, other: Path) -> None:
    """Losses and weights, as far as float64 can tell."""
    for key, budget in (("loss", 1e-10), ("validation_loss", 1e-6)):  # validation computes in float32
        values = [line[key] for line in metrics(folder) if key in line]
        assert values == pytest.approx([line[key] for line in metrics(other) if key in line], rel=0, abs=budget)
    one, two = (load_file(each / "model" / "model.safetensors") for each in (folder, other))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copies", "shard", "machines"])
def test_two_processes_give_what_one_gives(home: Path, name: str) -> None:
    assert_equal(home / name, home / "alone")
    assert read_json(home / name / "result.json")["processes"] == 2
    assert read_json(home / "alone" / "result.json")["processes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copies", "shard"])
def test_stopped_and_resumed(home: Path, name: str) -> None:
    """With as many processes to the bit; a divided model's checkpoint also serves one process."""
    assert without_times(home / f"{name}-stopped") == without_times(home / name)
    copy = home / f"{name}-stopped-copy"
    assert [path.name for path in checkpoints(copy)] == ["checkpoint-4", "checkpoint-7"]
    settings = (copy / "settings.json").read_text()
    (copy / "settings.json").write_text(settings.replace('"shard": true', '"shard": false'))
    alone(home, copy.name)
    assert_equal(copy, home / "alone")


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all(data: PackedData, corpus: Path, model_file: Path, tmp_path: Path) -> None:
    flags = [
        *("--model", model_file, "--data", corpus, "--seq-len", str(SEQ_LEN), "--batch-size", "4", "--device", "cpu"),
        *("--tokens", str(200 * 4 * SEQ_LEN), "--no-compile", "--save-every", "20", "--out", tmp_path / "run"),
        *("--evaluation-blocks", "8"),
    ]
    command = [*TORCHRUN, "-m", "exsel", "train", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not checkpoints(tmp_path / "run"):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.kill(second_worker(process.pid), signal.SIGKILL)
    killed = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    said = [line for line in err.splitlines() if line.startswith("exsel: ")]
    assert len(said) == 1
    assert said[0].endswith("has ended, and all end with it: go on from the last checkpoint with --resume")
    assert out.count("baseline: 200 steps") == 1
    assert "in 2 processes" in out
    last = checkpoints(tmp_path / "run")[-1]
    assert check_sealed(last)
    # One process goes on where two stood.
    subprocess.run([sys.executable, "-m", "exsel", "train", *flags, "--resume"], check=True, capture_output=True)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 201))


@pytest.mark.slow
def test_compare_with_everything(corpus: Path, model_file: Path, tmp_path: Path) -> None:
    # On a machine with several GPUs accelerate needs no --multi_gpu.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--mixed_precision", "bf16", "-m", "exsel", "compare", "--variants", "baseline,exclusive+selective"),
        *("--model", model_file, "--data", corpus, "--out", tmp_path / "out", "--device", "cpu"),
        *("--compile", "--shard", "--activation-checkpointing", "--accumulation", "2", "--batch-size", "4"),
        *("--seq-len", "32", "--tokens", "1536", "--evaluation-blocks", "8"),
    ]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    results = read_json(tmp_path / "out" / "results.json")
    assert results["machine"]["processes"] == 2
    assert results["config"]["dtype"] == "bfloat16"
    assert [run["processes"] for run in results["runs"]] == [2, 2]
    assert outcome.stdout.count("report: ") == 1
    for run in results["runs"]:
        assert load_whole(str(tmp_path / "out" / run["directory"] / "model"))


def second_worker(launcher: int) -> int:
    """The process id of the launcher's child that has rank 1."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("the launcher has no second process")
