"""Saved and loaded, a model is the same, mechanisms included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import exsel
from exsel import ExclusiveConfig, ExselConfig, ExselForCausalLM, ExselModel, SelectiveConfig
from exsel.errors import LoadError
from models.small_models import small_config, small_model

IDS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))


def saved_values(config: ExselConfig) -> dict[str, Any]:
    """All but where the configuration was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@torch.no_grad()
def test_round_trip(variant: dict[str, Any], shape: dict[str, Any], tmp_path: Path) -> None:
    model = small_model(**variant, **shape)
    model.save_pretrained(tmp_path)
    for loaded in (ExselForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is ExselForCausalLM
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name
        assert loaded.config.exclusive == model.config.exclusive
        assert loaded.config.selective == model.config.selective
        assert saved_values(loaded.config) == saved_values(model.config)
        assert torch.equal(loaded.eval()(IDS).logits, model(IDS).logits)
    decoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(decoder) is ExselModel
    assert torch.equal(decoder(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_config_file_is_plain_json(tmp_path: Path) -> None:
    config = small_config(
        exclusive=ExclusiveConfig(layers=(0, -1), strength="learned"), selective=SelectiveConfig(token="mlp")
    )
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "exsel"
    assert values["exclusive"] == {"layers": [0, -1], "strength": "learned"}
    assert values["selective"] == SelectiveConfig(token="mlp").to_dict()
    for loaded in (AutoConfig.from_pretrained(tmp_path), ExselConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ExselConfig
        assert loaded.exclusive == config.exclusive
        assert loaded.selective == config.selective
        assert saved_values(loaded) == saved_values(config)


def test_misspelt_mechanism_in_the_file_is_refused(tmp_path: Path) -> None:
    small_config(exclusive=ExclusiveConfig()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"strength"', '"strenght"'))
    with pytest.raises(ValueError, match="ExclusiveConfig has no field 'strenght'"):
        AutoConfig.from_pretrained(tmp_path)


@torch.no_grad()
def test_token_counts_are_saved(tmp_path: Path) -> None:
    model = small_model(selective=SelectiveConfig(token="frequency"))
    model.model.set_token_counts(torch.arange(61))
    model.save_pretrained(tmp_path)
    loaded = ExselForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.model.token_log_frequency is not None
    assert torch.equal(loaded.model.token_log_frequency, model.model.token_log_frequency)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_a_baseline_checkpoint_starts_a_model_with_the_mechanisms(tmp_path: Path) -> None:
    """What a checkpoint lacks starts where the mechanisms start: τ_tok = 0, σ(a) = position_init, γ = 0, φ unknown."""
    baseline = small_model()
    baseline.save_pretrained(tmp_path)
    config = small_config(
        exclusive=ExclusiveConfig(strength="learned"),
        selective=SelectiveConfig(token="mlp", position_init=0.25),
    )
    loaded = ExselForCausalLM.from_pretrained(tmp_path, config=config)
    for name, parameter in loaded.named_parameters():
        if name in baseline.state_dict():
            assert torch.equal(parameter, baseline.state_dict()[name]), name
        elif name.endswith("position_logit"):
            torch.testing.assert_close(torch.sigmoid(parameter), torch.full_like(parameter, 0.25))
        elif name.endswith("feature_proj.weight"):
            assert abs(parameter.std() / 0.2 - 1) < 0.2, name
        else:
            assert not parameter.any(), name
    by_name = exsel.from_pretrained(tmp_path, exclusive="learned")
    assert by_name.config.exclusive == ExclusiveConfig(strength="learned")
    frequency = ExselForCausalLM.from_pretrained(
        tmp_path, config=small_config(selective=SelectiveConfig(token="frequency"))
    )
    assert frequency.model.token_log_frequency is not None
    assert torch.isnan(frequency.model.token_log_frequency).all()


@torch.no_grad()
def test_loaded_in_bfloat16(tmp_path: Path) -> None:
    model = small_model(exclusive=ExclusiveConfig(), selective=SelectiveConfig())
    model.save_pretrained(tmp_path)
    loaded = ExselForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert (loaded(IDS).logits.float() - model(IDS).logits).norm() < 0.1 * model(IDS).logits.norm()


def test_untied_embeddings(tmp_path: Path) -> None:
    tied, untied = small_model(), small_model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    untied.save_pretrained(tmp_path)
    loaded = ExselForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, untied.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_missing_and_leftover_weights_are_refused(tmp_path: Path) -> None:
    small_model(selective=SelectiveConfig()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    lost = next(name for name in weights if name.endswith("position_logit"))
    more = {**weights, "model.layers.0.more": weights[lost].clone()}
    fewer = {name: weight for name, weight in weights.items() if name != lost}
    for changed in (more, fewer):
        save_file(changed, path, {"format": "pt"})
        for load in (ExselForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained):
            with pytest.raises(LoadError, match=r"lacks 1 weights, such as .*position_logit|no place for, 1 weights"):
                load(tmp_path)
