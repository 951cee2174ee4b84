from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from exsel.cli import main
from training.small_runs import write_corpus, write_model


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def run_main(*arguments: str | Path, main: Callable[[list[str]], int] = main) -> Outcome:
    """A command line, ``exsel`` if no other, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own
            code = int(str(stop.code))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "config.json")


@pytest.fixture(scope="session")
def flags(corpus: Path, model_file: Path) -> list[str]:
    """What every run is told here: 12 steps of 4 sequences of 32 bytes."""
    return [
        *("--model", str(model_file), "--data", str(corpus), "--seq-len", "32", "--batch-size", "4"),
        *("--tokens", "1536", "--no-compile", "--evaluations", "3", "--evaluation-blocks", "8"),
        *("--device", "cpu", "--save-every", "4"),
    ]


@pytest.fixture(scope="session")
def trained(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    outcome = run_main("train", *flags, "--lr", "1e-2", "--variant", "exclusive+selective", "--out", folder)
    assert outcome.code == 0, outcome.err
    return folder
