"""Real processes: stopped, killed, and gone on with."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cli.conftest import run_main
from exsel.training.output_folder import checkpoints
from training.small_runs import metrics, without_times

pytestmark = pytest.mark.first

# Many steps: there is time to stop a run in the middle.
STEPS, SAVE_EVERY = 150, 25
LONG = ["--tokens", str(STEPS * 128), "--save-every", str(SAVE_EVERY), "--lr", "1e-3"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "exsel", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read its lines up to the one with a text."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"it ended without {text!r}: {seen}{process.communicate()[1]}")


@pytest.fixture(scope="module")
def whole(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_main("train", *flags, *LONG, "--out", folder).code == 0
    return folder


def test_terminated_then_killed_and_gone_on_with_the_printed_command(
    flags: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder" / "run"
    process = start("train", *flags, *LONG, "--overwrite", "--out", folder)
    wait_for(process, "step ")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err == ""
    assert "saving a checkpoint" in out
    (said,) = [line for line in out.splitlines() if line.startswith("stopped after step ")]
    step = int(said.split("step ")[1].split(";")[0])
    assert checkpoints(folder)[-1].name == f"checkpoint-{step}"
    assert 0 < step < STEPS
    command = out.splitlines()[-1].strip()
    assert "--overwrite" not in command
    assert shlex.split(command)[-1] == "--resume"

    process = subprocess.Popen(f"exec {command}", shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(process, f"resumed after step {step}")
    while checkpoints(folder)[-1].name == f"checkpoint-{step}":
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = int(checkpoints(folder)[-1].name.removeprefix("checkpoint-"))
    assert len(metrics(folder)) - kept <= 2 * SAVE_EVERY  # no more is lost than lies between two checkpoints
    assert not (folder / "result.json").exists()

    arguments = shlex.split(command)
    outcome = run_main(*arguments[arguments.index("train") :])
    assert outcome.code == 0, outcome.err
    assert f"resumed after step {kept}" in outcome.out
    assert without_times(folder) == without_times(whole)
    one, other = (load_file(each / "model" / "model.safetensors") for each in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_terminal_gets_bars_and_ctrl_c_stops_a_comparison(flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = ["--variants", "baseline,exclusive", "--out", str(folder)]
    main_side, program_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "exsel", "compare", *flags, *LONG, *arguments],
        stdout=program_side,
        stderr=program_side,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(program_side)
    screen = b""
    sent = False
    try:
        while part := os.read(main_side, 65536):
            screen += part
            if not sent and b"tokens/s" in screen:
                process.send_signal(signal.SIGINT)
                sent = True
    except OSError:
        pass  # Linux's way to say that the other side has closed
    finally:
        os.close(main_side)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    text = screen.decode()
    assert "\x1b[" in text
    assert "baseline (1 of 2)" in text
    assert "\u2501" in text or "\u2578" in text  # the bar
    assert "Traceback" not in text
    assert text.rstrip().endswith("--resume")
    (run,) = (folder / "runs").iterdir()
    assert len(checkpoints(run)) >= 1
    assert not (folder / "results.json").exists()


def test_interrupted_while_loading_leaves_nothing(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_data(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exsel.training.run_model.load_data", load_data)
    outcome = run_main("train", *flags, "--out", tmp_path / "out")
    assert (outcome.code, outcome.err) == (130, "exsel: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_stopped_says_the_command_of_this_process(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.small_runs import Watcher

    watcher = Watcher(after=6, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("exsel.cli.display.make_progress", lambda: watcher)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/exsel", "ignored"])
    outcome = run_main("compare", *flags, "--variants", "baseline", "--out", tmp_path / "out", "--overwrite")
    assert outcome.code == 143
    said = shlex.split(outcome.out.splitlines()[-1])
    out = str(tmp_path / "out")
    assert said == ["/somewhere/bin/exsel", "compare", *flags, "--variants", "baseline", "--out", out, "--resume"]
    monkeypatch.undo()
    outcome = run_main(*said[1:])
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["runs"]) == 1
