"""Whatever a command is given: exit code 0, or 2 and one or two lines, with nothing written; never a traceback."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Outcome, run_main
from exsel.cli import COMMANDS
from exsel.files import MANIFEST
from exsel.report.results_file import SCHEMA
from training.small_runs import write_model

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402 (there may be none)

pytestmark = pytest.mark.slow

# Until a mistake is told, on a machine that does other things beside.
SECONDS = 20
NESTED = '{"a":' * 20_000 + "1" + "}" * 20_000
NUMBERS = ("0", "-1", "1", "3", "0.5", "nan", "inf", "1e-45", "1e308", "1e400", "9" * 20, "9" * 5000, "²", "٣", "0x1")
LISTS = ("1,2", "1,,2", ",", "--1,2", "0,0", "1,nan", "0.5,1", "16,999999999", "baseline,exclusive", "x" * 300)
NAMES = ("exclusive", "all", "tiny", "bytes", "cuda", "cuda:7", "mps", "meta", "auto", "float16", "wandb", "attention")
PATHS = (
    ".",
    "../other",
    "nodir/x",
    "file.txt",
    "file.txt/x",
    "x.svg",
    "new",
    "foreign",
    "/dev/null",
    "/dev/null/x",
    "*",
    "[",
)
PAIRS = (
    "strength=nan",
    "strength=learned",
    "layers=--1,2",
    "layers=1,2",
    "layers=",
    "layers=9",
    "token=mlp",
    "=",
    "a=b",
)
DATA = (
    "passkey:length=10000000",
    "passkey:count=999999999",
    "passkey",
    "passkey:",
    "nobody/nothing",
    "a:b:c",
    "none.csv",
)
TEXTS = ("", " ", "a\nb\nc\nd", "\x1b[31m", "\x00", "caf\udce9", "😀", "-", "--", "-1", "--out")
FILES = {
    "nested": NESTED,
    "number": '{"text": ' + "9" * 5000 + "}",
    "list": "[]",
    "object": "{}",
    "null": "null",
    "nan": '{"text": NaN, "model_type": "exsel"}',
    "cut": '{"text": "a',
    "surrogate": '{"text": "\\ud800", "model_type": "llama"}',
    "heads": '{"model_type": "exsel", "num_attention_heads": 0}',
    "negative": '{"model_type": "exsel", "hidden_size": -32}',
    "names": '{"model_type": ["exsel"], "layers": {"a": [1]}, "format": 1, "rows": 3, "command": null}',
    "latin": b"caf\xe9" * 400,
    "zeros": b"\0" * 4000,
    "empty": b"",
}
SUFFIXES = ("", ".json", ".jsonl", ".txt", ".parquet")
#: Names under which commands look into a folder.
INNER = (
    "config.json",
    "settings.json",
    "bench.json",
    "diagnostics.json",
    "reproduction.json",
    "results.json",
    "tokenizer.json",
    "adapter_config.json",
)


class Accepted(Exception):  # noqa: N818 (it is no error)
    """The work would begin."""


def begin(*_: Any, **__: Any) -> Any:
    raise Accepted


def words_of(command: str) -> st.SearchStrategy[list[str]]:
    """Flags of a command with values, most of which it cannot take."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"exsel.cli.{command}").add_arguments(parser)
    files = [f"{name}{suffix}" for name in FILES for suffix in SUFFIXES] + [f"with-{name}" for name in FILES]
    values = st.one_of(
        st.sampled_from([*NUMBERS, *LISTS, *NAMES, *PATHS, *PAIRS, *DATA, *TEXTS]),
        st.sampled_from(files),
        st.text(max_size=8).filter(lambda text: not text.startswith(("/", "~")) and ".." not in text),
    )
    options = []
    for action in parser._actions:
        flags = [flag for flag in action.option_strings if flag.startswith("--") and flag != "--help"]
        if action.option_strings and not flags:
            continue
        flag = st.sampled_from(flags) if flags else st.nothing()
        if not flags:
            options.append(values.map(lambda value: [value]))
        elif action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            options.append(flag.map(lambda flag: [flag]))
        else:
            many = st.lists(values, min_size=1, max_size=2 if action.nargs == "+" else 1)
            options.append(st.tuples(flag, many).map(lambda pair: [pair[0], *pair[1]]))
    return st.lists(st.one_of(*options), min_size=1, max_size=3).map(
        lambda parts: [word for part in parts for word in part]
    )


@pytest.fixture(scope="module")
def place(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with files and folders of all kinds; what would take long is cut off where it begins."""
    root = tmp_path_factory.mktemp("fuzz")
    folder = root / "here"
    folder.mkdir()
    shutil.copytree(trained / "model", folder / "model")
    (folder / "model" / MANIFEST).unlink(missing_ok=True)  # by which every damage would be seen
    for name, content in FILES.items():
        data = content.encode() if isinstance(content, str) else content
        for suffix in SUFFIXES:
            (folder / f"{name}{suffix}").write_bytes(data)
        (folder / f"with-{name}").mkdir()
        for inner in INNER:
            (folder / f"with-{name}" / inner).write_bytes(data)
    (folder / "file.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    write_model(folder / "small.json")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("mine")
    (folder / "compared").mkdir()
    results = {"schema": SCHEMA, "exsel_version": "0", "variants": []}
    (folder / "compared" / "results.json").write_text(json.dumps(results))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(root))
        patch.setattr("exsel.diagnostics.diagnosis_report.figures_by_section", lambda models: {})
        for work in (
            "exsel.training.run.train_run",
            "exsel.training.compare.compare_runs",
            "exsel.bench.session.run",
            "exsel.pretrained.pull",
        ):
            patch.setattr(work, begin)
        for module in ("exsel.hub_access", "exsel.data.tokenization", "exsel.data.hub"):
            patch.setattr(f"{module}.reason_unavailable", lambda name, kind: "no connection")
        yield root


#: What every command can do with, so that one bad value is what is wrong with it.
_TRAINING = (
    "--model small.json --data file.txt --seq-len 32 --batch-size 4 --tokens 512 --no-compile --device cpu --out new"
)
BASES = {
    "compare": _TRAINING,
    "train": _TRAINING,
    "generate": "model --prompt x --max-new-tokens 2 --device cpu",
    "eval": "model --data file.txt --max-sequences 2 --device cpu",
    "diagnose": "model --text some --max-sequences 2 --device cpu --out new",
    "support": "model",
    "report": "compared",
    "export": "model --standalone",
    "pull": "smollm2",
    "bench": "attention --shapes 2x1x16 --seq-lens 16 --device cpu --out new",
}


def state(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def check(root: Path, words: list[str], before: dict[str, bytes | None]) -> Outcome | None:
    """Run a command; ``None``: it would have worked."""
    start = time.perf_counter()
    try:
        outcome = run_main(*words)
    except Accepted:
        outcome = None
    seconds = time.perf_counter() - start
    after = state(root)
    if after != before and (outcome is None or outcome.code == 0):
        for path in sorted(map(Path, after.keys() - before.keys()), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for path, content in before.items():
            if content is not None and after.get(path) != content:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(content)
        assert state(root) == before
    if outcome is not None and outcome.code != 0:
        assert outcome.code == 2
        assert outcome.err.startswith("exsel: "), outcome.err
        assert len(outcome.err.splitlines()) <= 2, outcome.err
        assert after == before
    assert seconds < SECONDS
    return outcome


SETTINGS = {"deadline": None, "derandomize": True, "database": None}


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments(place: Path, command: str) -> None:
    before = state(place)

    @hypothesis.settings(max_examples=50, suppress_health_check=list(hypothesis.HealthCheck), **SETTINGS)
    @hypothesis.given(words_of(command))
    def run(words: list[str]) -> None:
        check(place, [command, *BASES[command].split(), *words], before)

    outcome = check(place, [command, *BASES[command].split()], before)
    assert outcome is None or outcome.code == 0
    run()


#: What may stand in a file of JSON in the place of anything.
VALUES = st.one_of(
    st.sampled_from([None, True, -1, 0, 3, 1000, 1e308, "", "x", "../x", "/etc/passwd", [], {}, [[]], {"a": None}]),
    st.text(max_size=3),
    st.floats(allow_nan=False),
)


@st.composite
def damages(draw: st.DrawFn, folder: Path) -> tuple[str, bytes]:
    """A file of a model's folder, and its content with something changed."""
    name = draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    data = (folder / name).read_bytes()
    if name.endswith(".json") and draw(st.booleans()):
        values = json.loads(data)
        key = draw(st.sampled_from(sorted(values)))
        if draw(st.booleans()):
            values[key] = draw(VALUES)
        else:
            del values[key]
        return name, json.dumps(values).encode()
    kind = draw(st.sampled_from(["cut", "flip", "replace"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        return name, data[:at]
    if kind == "flip":
        return name, data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    content = draw(st.sampled_from(sorted(FILES)))
    return name, FILES[content] if isinstance(FILES[content], bytes) else FILES[content].encode()


@pytest.mark.parametrize("command", ["generate", "diagnose", "support", "train"])
def test_a_damaged_model(place: Path, command: str) -> None:
    model = place / "here" / "model"
    words = [command, *BASES[command].split()]
    if command == "train":
        words[1] = "--from"

    @hypothesis.settings(max_examples=25, suppress_health_check=list(hypothesis.HealthCheck), **SETTINGS)
    @hypothesis.given(damages(model))
    def run(damage: tuple[str, bytes]) -> None:
        name, content = damage
        whole = (model / name).read_bytes()
        (model / name).write_bytes(content)
        try:
            check(place, words, state(place))
        finally:
            (model / name).write_bytes(whole)

    run()
