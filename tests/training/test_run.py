from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.data import PackedData
from exsel.errors import ExselError
from exsel.training.output_folder import checkpoints
from exsel.training.run import build_model
from exsel.training.run_model import check_disk
from exsel.training.step_record import StepRecord
from exsel.variants import VARIANTS
from training.small_runs import Watcher, metrics, small_data, small_settings, train


@pytest.mark.parametrize("token", ["shared", "mlp", "frequency"])
def test_variants_of_a_seed_begin_with_the_same_weights(model_file: Path, data: PackedData, token: str) -> None:
    models = {
        variant: build_model(
            small_settings(model_file, variant=variant, seed=5, selective=SelectiveConfig(token=token)),  # type: ignore[arg-type]
            data,
        ).state_dict()
        for variant in VARIANTS
    }
    baseline = models["baseline"]
    for variant, weights in models.items():
        assert all(torch.equal(weights[name], baseline[name]) for name in baseline), variant
    other = build_model(small_settings(model_file, seed=6), data).state_dict()
    assert not torch.equal(other["model.embed_tokens.weight"], baseline["model.embed_tokens.weight"])


def test_special_tokens_are_the_tokenizers(model_file: Path, data: PackedData) -> None:
    config = build_model(small_settings(model_file), data).config
    assert config.eos_token_id == data.tokenizer.eos_token_id
    assert config.pad_token_id == data.tokenizer.pad_token_id
    assert config.vocab_size == data.description.vocab_size


def test_what_a_run_leaves(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    watcher = Watcher()
    result = train(small_settings(model_file, variant="exclusive"), data, tmp_path / "run", progress=watcher)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "exsel-manifest.json",
        "settings.json",
        "metrics.jsonl",
        "result.json",
        "model",
    }
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert watcher.starts == [("run", 12, 0)]
    assert watcher.steps == list(range(1, 13))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8, 12]
    assert result["loss"] == lines[-1]["validation_loss"]
    assert result["validation_curve"][-1]["tokens"] == result["tokens"] == 12 * 128
    assert len(result["train_curve"]) == 12
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config.exclusive == ExclusiveConfig()


def test_frequency_temperatures_get_their_counts(model_file: Path, data: PackedData, tmp_path: Path) -> None:
    settings = small_settings(model_file, variant="selective", selective=SelectiveConfig(token="frequency"))
    train(settings, data, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    frequency = model.model.token_log_frequency
    assert torch.isfinite(frequency).all()
    assert torch.equal(frequency, build_model(settings, data).model.token_log_frequency)
    assert frequency[ord(" ") + 3] > frequency[ord("!") + 3]


@pytest.mark.parametrize("rate", [1e9, 1e30])
def test_a_loss_that_is_no_number_stops_the_run(
    model_file: Path, data: PackedData, tmp_path: Path, rate: float
) -> None:
    settings = small_settings(model_file, learning_rate=rate, save_every=1, warmup_steps=0)
    with pytest.raises(ExselError) as caught:
        train(settings, data, tmp_path / "run")
    message = str(caught.value)
    assert "step " in message
    assert "lower --lr" in message
    found = checkpoints(tmp_path / "run")
    assert (str(found[-1]) if found else "no checkpoint had been saved") in message
    for checkpoint in found:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_poisoned_step_is_named_and_the_checkpoint_before_it_is_kept(
    model_file: Path, data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exsel.training.trainer import ExselTrainer

    original = ExselTrainer.training_step

    def training_step(trainer: ExselTrainer, *arguments: Any, **options: Any) -> Any:
        loss = original(trainer, *arguments, **options)
        if trainer.state.global_step == 6:
            trainer.record.losses[-1] = loss * float("nan")
        return loss

    monkeypatch.setattr(ExselTrainer, "training_step", training_step)
    with pytest.raises(
        ExselError, match=r"the loss became nan at step 7; the last good checkpoint is .*checkpoint-4\."
    ):
        train(small_settings(model_file), data, tmp_path / "run")
    monkeypatch.undo()
    assert len(metrics(tmp_path / "run")) == 6
    result = train(small_settings(model_file), data, tmp_path / "run", resume=True)
    assert result["loss"] < 5


def test_weights_that_are_no_numbers_are_not_saved(
    model_file: Path, data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(small_settings(model_file), data)
    monkeypatch.setattr("exsel.training.run.build_model", lambda *_: model)

    @torch.no_grad()
    def poison() -> None:
        model.model.norm.weight[0] = float("inf")

    with pytest.raises(ExselError, match=r"norm\.weight holds values that are not finite after step 4; no checkpoint"):
        train(small_settings(model_file, evaluations=1), data, tmp_path / "run", progress=Watcher(4, poison))
    assert checkpoints(tmp_path / "run") == []


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(
    model_file: Path, data: PackedData, tmp_path: Path
) -> None:
    train(small_settings(model_file), data, tmp_path / "single")
    result = train(small_settings(model_file, dtype="bfloat16"), data, tmp_path / "half")
    first = [metrics(tmp_path / name)[0]["loss"] for name in ("single", "half")]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], abs=0.05)
    assert result["loss"] < 5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half" / "model").dtype == torch.float32


def test_isolated_documents(model_file: Path, corpus: Path, tmp_path: Path) -> None:
    data = small_data(corpus, pack="isolate")
    result = train(small_settings(model_file, variant="exclusive+selective", pack="isolate"), data, tmp_path / "run")
    assert result["loss"] < 5
    concat = train(small_settings(model_file), small_data(corpus), tmp_path / "concat")
    assert result["loss"] != concat["loss"]


def test_a_stream_gives_whole_steps_and_resumes(
    model_file: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from exsel.data.packing import pack_stream
    from training.small_runs import interrupted, without_times

    whole = small_data(corpus)
    texts = [path.read_text() for path in sorted(corpus.glob("*.txt"))][:5]
    stream = pack_stream(texts, whole.tokenizer, seq_len=32, pack="concat")
    data = PackedData(
        train=stream, validation=whole.validation, tokenizer=whole.tokenizer, description=whole.description
    )
    assert 0 < len(list(stream)) < 48  # fewer blocks than the run reads
    settings = small_settings(model_file, accumulation=2)
    train(settings, data, tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == list(range(1, 13))
    interrupted(settings, data, tmp_path / "run", Watcher(after=9, action=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    train(settings, data, tmp_path / "run", resume=True)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")


def full_disk(*_arguments: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["save_optimizer", "save_random"])
def test_a_disk_that_fills_up_while_saving(
    model_file: Path, data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    settings = small_settings(model_file)
    whole = train(settings, data, tmp_path / "whole")
    with pytest.raises(ExselError) as caught:
        train(
            settings,
            data,
            tmp_path / "run",
            progress=Watcher(5, lambda: monkeypatch.setattr(f"exsel.training.checkpoint_state.{function}", full_disk)),
        )
    message = str(caught.value)
    assert "checkpoint after step 8 could not be saved" in message
    assert "No space left on device" in message
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint-4'}" in message
    assert "--resume" in message
    assert not (tmp_path / "run" / ".saving").exists()
    monkeypatch.undo()
    assert train(settings, data, tmp_path / "run", resume=True)["loss"] == whole["loss"]


def test_a_model_that_cannot_be_saved(
    model_file: Path, data: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(model_file)
    monkeypatch.setattr(type(data.tokenizer), "save_pretrained", full_disk)
    with pytest.raises(ExselError, match=r"could not be saved .*No space left"):
        train(settings, data, tmp_path / "run")
    monkeypatch.undo()
    assert not any((tmp_path / "run").glob("*model*"))
    train(settings, data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    record = StepRecord(folder=tmp_path)
    record.add({"step": 1, "seconds": 1.0})
    with pytest.raises(ExselError, match=r"metrics\.jsonl could not be written .*no checkpoint had been saved"):
        record.flush()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_real_disk_that_fills_up(model_file: Path, data: PackedData, small_disk: Path, tmp_path: Path) -> None:
    settings = small_settings(model_file)
    whole = train(settings, data, tmp_path / "whole")
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    with pytest.raises(ExselError) as caught:
        train(settings, data, small_disk / "run", progress=Watcher(after=5, action=fill))
    message = str(caught.value)
    assert "No space left on device" in message
    assert "checkpoint-4" in message
    filler.unlink()
    assert train(settings, data, small_disk / "run", resume=True)["loss"] == whole["loss"]


def test_the_disk_is_checked_for_all_runs_together(model_file: Path, small_disk: Path) -> None:
    settings = small_settings(model_file)
    # 259 × 32 and two layers of 4 bytes a number: 31,008 weights are 124 kB, and 10 of them for one run.
    check_disk([settings], 259, small_disk / "out" / "run")
    with pytest.raises(ExselError, match=r"has 3 MiB free, and the models and checkpoints of this need 4 MiB"):
        check_disk([settings] * 25, 259, small_disk / "out" / "run")
    assert not (small_disk / "out").exists()


def test_what_is_there_already_counts_as_free(model_file: Path, small_disk: Path) -> None:
    (small_disk / "out").mkdir()
    (small_disk / "out" / "checkpoint").write_bytes(b"x" * 2 * 2**20)
    check_disk([small_settings(model_file)], 259, small_disk / "out")
    with pytest.raises(ExselError, match="has 1 MiB free"):
        check_disk([small_settings(model_file)], 259, small_disk / "other")


def test_a_configuration_that_does_not_build(tmp_path: Path) -> None:
    from training.small_runs import write_model

    path = write_model(tmp_path / "config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
    with pytest.raises(ExselError, match=r"--model .* cannot be built"):
        check_disk([small_settings(path)], 259, tmp_path)
