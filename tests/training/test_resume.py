"""A run that was stopped and resumed is the run that was never stopped, to the bit."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import exsel
from exsel.cli.display import RunLines
from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.files import MANIFEST, file_sha256, locked, read_json
from exsel.training import checkpoint_state
from exsel.training.output_folder import checkpoints
from exsel.training.run import Interrupted, train_run
from exsel.training.saved_models import load_whole
from exsel.training.settings import Settings
from exsel.training.trainer import ExselTrainer
from training.small_runs import (
    Watcher,
    interrupted,
    metrics,
    small_data,
    small_settings,
    train,
    without_times,
    write_corpus,
    write_model,
)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Killed(BaseException):
    """What no code of ours catches: the run ends here, as with kill -9."""


def kill() -> None:
    raise Killed


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_run(first: Path, second: Path, results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert without_times(first) == without_times(second)
    assert same_weights(first, second)
    one, other = results
    for name in ("loss", "bits_per_byte", "tokens", "similarity"):
        assert one[name] == other[name]


SETTINGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "both": {"variant": "exclusive+selective"},
    "accumulation": {"accumulation": 2},
    "warm-up": {"warmup_steps": 8},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize(
    ("name", "number"), [*((name, signal.SIGTERM) for name in SETTINGS), ("baseline", signal.SIGINT)]
)
def test_interrupted(model_file: Path, data: PackedData, tmp_path: Path, name: str, number: int) -> None:
    settings = small_settings(model_file, **SETTINGS[name])
    whole = train(settings, data, tmp_path / "whole")
    watcher = Watcher(after=6, action=send(number))
    stop = interrupted(settings, data, tmp_path / "stopped", watcher)
    assert stop.signal == number
    assert stop.step == 6 + 1  # the handler is heard at the end of the step that follows
    assert any("saving" in note for note in watcher.notes)
    assert checkpoints(tmp_path / "stopped")[-1].name == "checkpoint-7"
    resumed = train(settings, data, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", (whole, resumed))


def test_more_than_once_and_over_several_passes(model_file: Path, tmp_path: Path) -> None:
    # 4 documents are fewer blocks than 3 steps read: the stops lie in different passes over the data.
    data = small_data(write_corpus(tmp_path / "corpus", documents=4, words=50))
    settings = small_settings(model_file, tokens=16 * 4 * 32)
    assert len(data.train) < 6 * 4
    whole = train(settings, data, tmp_path / "whole")
    for step in (3, 9, 12):
        with pytest.raises(Interrupted):
            train(
                settings,
                data,
                tmp_path / "often",
                progress=Watcher(after=step, action=send(signal.SIGTERM)),
                resume=True,
            )
    resumed = train(settings, data, tmp_path / "often", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "often", (whole, resumed))
    assert [line["step"] for line in metrics(tmp_path / "often")] == list(range(1, 17))


def test_dropout_goes_on_where_it_stopped(data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(write_model(tmp_path / "config.json", attention_dropout=0.3))
    train(settings, data, tmp_path / "whole")
    interrupted(settings, data, tmp_path / "stopped", Watcher(after=5, action=send(signal.SIGTERM)))
    train(settings, data, tmp_path / "stopped", resume=True)
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "stopped")


@pytest.fixture(scope="module")
def whole(model_file: Path, data: PackedData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """A finished run."""
    settings = small_settings(model_file)
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(settings, data, folder)
    return settings, folder


@pytest.mark.parametrize("after", [1, 6, 12])
def test_killed(whole: tuple[Settings, Path], data: PackedData, tmp_path: Path, after: int) -> None:
    """Killed before the first checkpoint, between two, and after the last step but before its checkpoint."""
    settings, original = whole
    with pytest.raises(Killed):
        train(settings, data, tmp_path / "killed", progress=Watcher(after=after, action=kill))
    found = [path.name for path in checkpoints(tmp_path / "killed")]
    assert found == {1: [], 6: ["checkpoint-4"], 12: ["checkpoint-4", "checkpoint-8"]}[after]
    watcher = Watcher()
    resumed = train(settings, data, tmp_path / "killed", progress=watcher, resume=True)
    assert watcher.starts == [("run", 12, {1: 0, 6: 4, 12: 8}[after])]
    assert_same_run(original, tmp_path / "killed", (read_json(original / "result.json"), resumed))


@pytest.mark.parametrize(
    "method", ["_save_optimizer_and_scheduler", "_save_rng_state", "save_model", "_save_scaler", "store_flos"]
)
def test_killed_while_saving(
    whole: tuple[Settings, Path], data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Half a checkpoint stays under its other name, and a resume does not look at it."""
    settings, original = whole
    saving = getattr(ExselTrainer, method)

    def save(trainer: ExselTrainer, *arguments: Any, **options: Any) -> Any:
        result = saving(trainer, *arguments, **options)
        if trainer.state.global_step == 8:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(ExselTrainer, method, save)
        # What a kill would not run either.
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(Killed):
            train(settings, data, tmp_path / "killed")
    assert [path.name for path in checkpoints(tmp_path / "killed")] == ["checkpoint-4"]
    half = tmp_path / "killed" / ".saving" / "checkpoint-8"
    assert (half / "model.safetensors").exists() == (method != "store_flos")
    resumed = train(settings, data, tmp_path / "killed", resume=True)
    assert_same_run(original, tmp_path / "killed", (read_json(original / "result.json"), resumed))
    assert not (tmp_path / "killed" / ".saving").exists()


@pytest.mark.parametrize("function", ["staged", "_result"])
def test_killed_after_the_last_checkpoint(
    whole: tuple[Settings, Path], data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    settings, original = whole
    with monkeypatch.context() as patch:
        patch.setattr(f"exsel.training.run.{function}", lambda *arguments: kill())
        with pytest.raises(Killed):
            train(settings, data, tmp_path / "killed")
    watcher = Watcher()
    resumed = train(settings, data, tmp_path / "killed", progress=watcher, resume=True)
    assert watcher.steps == []
    assert resumed["ms_per_step"] > 0
    assert resumed["peak_memory_bytes"] > 0
    assert_same_run(original, tmp_path / "killed", (read_json(original / "result.json"), resumed))


def test_time_goes_on_from_where_it_stopped(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(model_file)
    interrupted(settings, data, tmp_path / "run", Watcher(after=6, action=send(signal.SIGTERM)))
    before = metrics(tmp_path / "run")
    result = train(settings, data, tmp_path / "run", resume=True)
    lines = metrics(tmp_path / "run")
    assert lines[: len(before)] == before
    times = [line["seconds"] for line in lines]
    assert times == sorted(times)
    assert result["train_seconds"] == times[-1]


def test_a_finished_run_gives_its_result_again(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(model_file)
    result = train(settings, data, tmp_path / "run")
    watcher = Watcher()
    assert train(settings, data, tmp_path / "run", progress=watcher, resume=True) == result
    assert watcher.starts == []


def test_a_signal_at_the_last_step_stops_what_comes_after(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(model_file)
    stop = interrupted(settings, data, tmp_path / "run", Watcher(after=12, action=send(signal.SIGTERM)))
    assert stop.step == 12
    assert (tmp_path / "run" / "result.json").exists()
    assert checkpoints(tmp_path / "run") == []


def test_a_second_interrupt_stops_at_once(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        train(small_settings(model_file), data, tmp_path / "run", progress=Watcher(after=6, action=twice))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4"]


def test_a_signal_in_the_middle_of_a_write_to_standard_output(
    model_file: Path, data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raw(io.RawIOBase):
        written = b""

        def writable(self) -> bool:
            return True

        def write(self, part: Any) -> int:
            is_first = b"step 6/" not in self.written
            self.written += bytes(part)
            if is_first and b"step 6/" in self.written:
                send(signal.SIGTERM)()
            return len(part)

    raw = Raw()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw)))
    with pytest.raises(Interrupted) as stop:
        train_run(small_settings(model_file), data, tmp_path / "run", name="run", progress=RunLines())
    assert stop.value.step == 7
    assert b"stopping after step 7, and saving a checkpoint" in raw.written


def test_handlers_are_put_back(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupted(small_settings(model_file), data, tmp_path / "run", Watcher(after=2, action=send(signal.SIGTERM)))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"learning_rate": 2e-2}, "learning_rate"), ({"tokens": 13 * 128, "seed": 1}, "seed, tokens")],
)
def test_other_settings_are_refused(
    model_file: Path, data: PackedData, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    settings = small_settings(model_file)
    interrupted(settings, data, tmp_path / "run", Watcher(after=2, action=send(signal.SIGTERM)))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ExselError, match=f"begun with other settings \\({named}\\)"):
        train(small_settings(model_file, **changes), data, tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == files


def test_a_new_run_needs_a_folder_without_a_run(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(model_file)
    interrupted(settings, data, tmp_path / "run", Watcher(after=2, action=send(signal.SIGTERM)))
    with pytest.raises(ExselError, match="holds a run: resume it"):
        train(settings, data, tmp_path / "run")
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(ExselError, match=r"checkpoint-3 is of a run whose settings\.json is missing"):
        train(settings, data, tmp_path / "run", resume=True)


@pytest.fixture(scope="module")
def stopped(model_file: Path, data: PackedData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """A run stopped after step 7, with checkpoints of steps 4 and 7."""
    settings = small_settings(model_file)
    folder = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(settings, data, folder, Watcher(after=6, action=send(signal.SIGTERM)))
    return settings, folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": flip,
    "other JSON": lambda path: path.write_text("[1, 2]\n"),
    "no values": lambda path: path.write_text("{}"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "not text": lambda path: path.write_bytes(b"\xff\xfe"),
}


def damaged(folder: Path, names: list[str]) -> Iterator[tuple[Path, str]]:
    """Each file damaged in each way, and whole again afterwards."""
    for name in names:
        whole = (folder / name).read_bytes()
        for how, damage in DAMAGE.items():
            damage(folder / name)
            yield folder / name, how
            (folder / name).write_bytes(whole)


def test_whatever_is_damaged_in_a_checkpoint_is_named(
    stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path
) -> None:
    settings, original = stopped
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    last = folder / "checkpoint-7"
    names = [str(path.relative_to(folder)) for path in last.rglob("*") if path.is_file()]
    assert {"metrics.jsonl", "exsel-manifest.json", "trainer_state.json", checkpoint_state.OPTIMIZER_VALUES} < {
        Path(name).name for name in names
    }
    before = sorted(folder.rglob("*"))
    for path, how in damaged(folder, names):
        with pytest.raises(ExselError) as caught:
            train(settings, data, folder, resume=True)
        message = str(caught.value)
        assert f"checkpoint {last} cannot be read (" in message, how
        assert path.name in message, how
        assert f"go on from {folder}/checkpoint-4" in message, how
        assert len(message.splitlines()) == 1, how
    assert sorted(folder.rglob("*")) == before
    (last / "adapter_config.json").write_text("{}")
    with pytest.raises(ExselError, match=r"adapter_config\.json was not saved with it"):
        train(settings, data, folder, resume=True)
    # And that advice is good.
    shutil.rmtree(last)
    train(settings, data, folder, resume=True)
    assert [line["step"] for line in metrics(folder)] == list(range(1, 13))


def test_a_checkpoint_under_another_step(stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path) -> None:
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-7").rename(tmp_path / "run" / "checkpoint-8")
    with pytest.raises(ExselError, match="it was saved after another step"):
        train(settings, data, tmp_path / "run", resume=True)


def test_the_only_checkpoint_damaged(stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path) -> None:
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "checkpoint-7" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ExselError, match="delete that folder to begin anew"):
        train(settings, data, tmp_path / "run", resume=True)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_record_is_that_of_the_checkpoint_again(
    stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path, how: str
) -> None:
    """The clock goes on, and the curves are whole, whatever became of the file beside the checkpoint."""
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    before = metrics(tmp_path / "run")
    DAMAGE[how](tmp_path / "run" / "metrics.jsonl")
    stop = interrupted(settings, data, tmp_path / "run", Watcher(after=8, action=send(signal.SIGTERM)), resume=True)
    assert metrics(tmp_path / "run")[:7] == before
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, stop.step + 1))


def test_damaged_settings_are_named(stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path) -> None:
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    for path, how in damaged(tmp_path / "run", ["settings.json"]):
        with pytest.raises(ExselError) as caught:
            train(settings, data, tmp_path / "run", resume=True)
        assert str(path.parent) in str(caught.value), how
        assert len(str(caught.value).splitlines()) == 1, how


def test_whatever_is_damaged_in_a_finished_run_is_named(
    whole: tuple[Settings, Path], data: PackedData, tmp_path: Path
) -> None:
    settings, original = whole
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert {"settings.json", "metrics.jsonl", "result.json", "exsel-manifest.json", "model/model.safetensors"} < {
        *names
    }
    for path, how in damaged(folder, names):
        with pytest.raises(ExselError) as caught:
            train(settings, data, folder, resume=True)
        message = str(caught.value)
        assert path.name in message or path.name == "settings.json", how
        assert len(message.splitlines()) == 1, how
    assert train(settings, data, folder, resume=True) == read_json(folder / "result.json")


def test_a_damaged_model_is_not_loaded(
    stopped: tuple[Settings, Path], whole: tuple[Settings, Path], tmp_path: Path
) -> None:
    shutil.copytree(stopped[1], tmp_path / "stopped")
    shutil.copytree(whole[1], tmp_path / "whole")
    for folder in (tmp_path / "stopped" / "checkpoint-7", tmp_path / "whole" / "model"):
        exsel.from_pretrained(folder)
        flip(folder / "model.safetensors")
        for load in (exsel.from_pretrained, lambda path: load_whole(str(path))):
            with pytest.raises(ExselError, match=r"model\.safetensors has changed since it was saved"):
                load(folder)


def test_every_way_into_a_checkpoint_hashes_each_file_once(
    stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    last = tmp_path / "run" / "checkpoint-7"
    once = dict.fromkeys(read_json(last / MANIFEST)["sha256"], 1)
    hashed: Counter[str] = Counter()

    def counted(path: Path) -> str:
        if path.is_relative_to(last):
            hashed[path.relative_to(last).as_posix()] += 1
        return file_sha256(path)

    monkeypatch.setattr("exsel.files.file_sha256", counted)
    ways: list[Callable[[], Any]] = [
        lambda: exsel.from_pretrained(last),
        lambda: load_whole(str(last)),
        lambda: train(settings, data, tmp_path / "run", resume=True),
    ]
    for enter in ways:
        hashed.clear()
        enter()
        assert hashed == once


def test_all_files_have_the_mode_of_new_ones(stopped: tuple[Settings, Path], whole: tuple[Settings, Path]) -> None:
    for _, folder in (stopped, whole):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) > 5
        assert {path.stat().st_mode for path in files} == {(folder / "settings.json").stat().st_mode}


def test_a_folder_in_which_another_process_is_at_work(
    stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path
) -> None:
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with locked(tmp_path / "run"), pytest.raises(ExselError, match="another process is at work in"):
        train(settings, data, tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("what", ["the data", "the model", "the split"])
def test_what_the_settings_name_has_changed(tmp_path: Path, what: str) -> None:
    corpus, model = write_corpus(tmp_path / "corpus"), write_model(tmp_path / "config.json")
    interrupted(
        small_settings(model), small_data(corpus), tmp_path / "run", Watcher(after=2, action=send(signal.SIGTERM))
    )
    if what == "the data":
        (corpus / "00.txt").write_text((corpus / "00.txt").read_text().replace("fox", "cat"))
    elif what == "the split":
        (corpus / "new.txt").write_text("another document " * 20)
    else:
        write_model(model, norm_eps=1e-3)
    named = "model" if what == "the model" else "what the data holds"
    with pytest.raises(ExselError, match=f"begun with other settings \\({named}\\)"):
        train(small_settings(model), small_data(corpus), tmp_path / "run", resume=True)


def test_folders_with_names_like_those_of_checkpoints(
    stopped: tuple[Settings, Path], data: PackedData, tmp_path: Path
) -> None:
    settings, original = stopped
    shutil.copytree(original, tmp_path / "run")
    own = [
        tmp_path / "run" / name for name in ("checkpoint-²", "checkpoint-3-backup", "checkpoint-9999999999999999999")
    ]
    for folder in own:
        folder.mkdir()
    train(settings, data, tmp_path / "run", resume=True)
    assert all(folder.is_dir() for folder in own)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # dynamo's own look
def test_compiled(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(model_file, variant="exclusive+selective", compile=True)
    whole = train(settings, data, tmp_path / "whole")
    interrupted(settings, data, tmp_path / "stopped", Watcher(after=6, action=send(signal.SIGTERM)))
    resumed = train(settings, data, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", (whole, resumed))


def test_loggers_are_told_the_validation_loss(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    interrupted(small_settings(model_file), data, tmp_path / "run", Watcher(after=10, action=send(signal.SIGTERM)))
    history = read_json(checkpoints(tmp_path / "run")[-1] / "trainer_state.json")["log_history"]
    told = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    lines = [line for line in metrics(tmp_path / "run") if "validation_loss" in line]
    assert told == {line["step"]: line["validation_loss"] for line in lines}
    assert len(told) == 2
