from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.errors import ExselError
from exsel.files import read_json
from exsel.models import SIZES
from exsel.training.settings import DEFAULTS, Settings, check_loggers
from exsel.variants import VARIANTS
from training.small_runs import small_settings, write_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"seq_len": -1}, "--seq-len must be at least 1"),
        ({"tokens": -5}, "--tokens must be at least 1"),
        ({"accumulation": 3}, "--accumulation 3 must divide --batch-size 4"),
        ({"learning_rate": 0.0}, "--lr must be a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "--lr must be a positive number"),
        ({"token_learning_rate": -1.0}, "--token-lr must be a positive number"),
        ({"position_learning_rate": float("nan")}, "--position-lr must be a positive number"),
        ({"weight_decay": -0.1}, "--weight-decay must be 0 or"),
        ({"weight_decay": float("inf")}, "--weight-decay must be 0 or"),
        ({"tokens": 100}, "--tokens 100 is less than one step of 4 × 32 = 128 tokens"),
        ({"warmup_steps": 13}, "--warmup-steps must lie between 0 and the 12 steps, got 13"),
        ({"warmup_steps": -1}, "--warmup-steps must lie between"),
        ({"save_every": -1}, "--save-every must be 0"),
        ({"evaluations": 0}, "--evaluations must be at least 1"),
        ({"evaluation_blocks": 0}, "--evaluation-blocks must be at least 1"),
        ({"seed": -1}, "a seed must lie between 0 and"),
        ({"seed": 2**32}, "a seed must lie between 0 and"),
    ],
)
def test_values_that_cannot_work(model_file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExselError) as caught:
        small_settings(model_file, **changes)
    assert message in str(caught.value)


def test_they_survive_json(model_file: Path) -> None:
    settings = small_settings(
        model_file,
        variant="exclusive+selective",
        data=("a", "b"),
        exclusive=ExclusiveConfig(layers=[0, 1], strength="learned"),
        selective=SelectiveConfig(token="mlp", value_position=False),
        report_to=("tensorboard",),
    )
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()


def test_a_configuration_file_is_read_once(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, read = small_settings(model_file), list[Path]()
    monkeypatch.setattr("exsel.training.settings.read_json", lambda path: read.append(path) or read_json(path))
    assert settings.is_decoder
    assert settings.model_config(64, None).vocab_size == 64
    assert settings.model_sha256() == small_settings(dict(settings.config_values)).model_sha256()
    assert read == [model_file]


def test_a_models_hash_is_of_what_its_file_says(model_file: Path, tmp_path: Path) -> None:
    hashes = {
        name: replace(small_settings(model_file), **changes).model_sha256()
        for name, changes in {
            "first": {},
            "moved": {"model": str(shutil.copy(model_file, tmp_path / "moved.json"))},
            "changed": {"model": str(write_model(tmp_path / "changed.json", norm_eps=1e-3))},
            "named": {"model": "tiny"},
            "source": {"source": str(model_file.parent)},
            "hub": {"source": "org/name"},
        }.items()
    }
    assert hashes["first"] == hashes["moved"] == hashes["source"]
    assert hashes["hub"] is None
    assert len(set(hashes.values())) == 4


@pytest.mark.parametrize(("steps", "evaluations"), [(12, 3), (12, 5), (12, 12), (3, 15), (1, 1), (7, 2)])
def test_evaluation_is_evenly_spread_and_ends_with_the_run(model_file: Path, steps: int, evaluations: int) -> None:
    settings = small_settings(model_file, tokens=steps * 128, warmup_steps=0, evaluations=evaluations)
    taken = settings.evaluation_steps()
    assert taken[-1] == steps
    assert taken == sorted(set(taken))
    assert len(taken) == min(steps, evaluations)
    gaps = [later - earlier for earlier, later in zip([0, *taken], taken, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_its_mechanisms(model_file: Path, variant: str) -> None:
    config = small_settings(model_file, variant=variant).model_config(300, 7)
    assert (config.exclusive is not None) == ("exclusive" in variant)
    assert (config.selective is not None) == ("selective" in variant)
    assert (config.vocab_size, config.eos_token_id, config.max_position_embeddings) == (300, 7, 32)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_defaults_and_a_configuration(size: str) -> None:
    defaults = DEFAULTS[size]
    settings = Settings(
        variant=VARIANTS["baseline"],
        seed=0,
        learning_rate=defaults.learning_rate,
        model=size,
        tokens=defaults.tokens,
        seq_len=defaults.seq_len,
        batch_size=defaults.batch_size,
        warmup_steps=0,
    )
    config = settings.model_config(259, 1)
    assert config.hidden_size == SIZES[size]["hidden_size"]
    assert settings.steps >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "must be a multiple of"),
        ({"hidden_size": 30, "num_attention_heads": 4, "head_dim": None, "num_key_value_heads": 4}, "hidden_size=30"),
        ({"norm": "batchnorm"}, "norm must be"),
        ({"hidden_sise": 64}, "no field 'hidden_sise'"),
        ({"model_type": "bert"}, "type 'bert' cannot be trained here"),
        ({"model_type": None}, "type 'None' cannot be trained here"),
        ({"hidden_size": "wide"}, "--model"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_model(tmp_path / "config.json", **changes)
    with pytest.raises(ExselError) as caught:
        small_settings(path).model_config(259, 1)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExselError, match=r"neither a size .*124m.* nor a transformers configuration"):
        small_settings(tmp_path / "none.json").model_config(259, 1)


@pytest.mark.parametrize(("text", "message"), [("[1]", "a JSON object"), ("{", "is not JSON"), ("", "is not JSON")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ExselError, match=message):
        small_settings(path).model_config(259, 1)


def test_a_folder_with_a_configuration_will_do(model_file: Path) -> None:
    assert small_settings(model_file.parent).model_config(259, 1).hidden_size == 32


def test_exclusive_layers_that_the_model_lacks(model_file: Path) -> None:
    settings = small_settings(model_file, variant="exclusive", exclusive=ExclusiveConfig(layers=[5]))
    with pytest.raises(ExselError, match="--model"):
        settings.model_config(259, 1)


def test_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"])
    check_loggers([])
    check_loggers(["tensorboard"])
    with pytest.raises(ExselError, match=r"--report-to paper: no such logger; choose from .*wandb"):
        check_loggers(["tensorboard", "paper"])
    with pytest.raises(ExselError, match="--report-to wandb: it is not installed: pip install wandb"):
        check_loggers(["wandb"])
