from __future__ import annotations

import json

import pytest
import torch
from transformers import BartConfig, BartModel, LlamaForCausalLM, MiniMaxConfig, MiniMaxForCausalLM

import exsel
from exsel import ExclusiveConfig
from upgrading.upgraded_models import llama_config


@pytest.fixture(scope="module")
def hybrid() -> MiniMaxForCausalLM:
    with torch.device("meta"):
        return MiniMaxForCausalLM(
            MiniMaxConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=50,
                num_local_experts=2,
                layer_types=["full_attention", "linear_attention"],
            )
        )


def test_it_numbers_self_attention_and_leaves_cross_attention_alone() -> None:
    with torch.device("meta"):
        model = BartModel(BartConfig(d_model=32, encoder_layers=1, decoder_layers=2, vocab_size=50))
    answer = exsel.support(model)
    assert [(layer.index, layer.name) for layer in answer.layers] == [
        (0, "encoder.layers.0.self_attn"),
        (1, "decoder.layers.0.self_attn"),
        (None, "decoder.layers.0.encoder_attn"),
        (2, "decoder.layers.1.self_attn"),
        (None, "decoder.layers.1.encoder_attn"),
    ]
    assert answer.possible_layers("exclusive") == (0, 1, 2)
    assert answer.refusals == ()
    assert "cross-attention has no own values" in str(answer)


def test_it_gives_the_reason_and_the_layers_that_are_left(hybrid: MiniMaxForCausalLM) -> None:
    answer = exsel.support(hybrid)
    assert answer.possible_layers("selective") == (0,)
    assert len(answer.refusals) == 2
    assert "linear attention" in answer.refusals[0]
    assert "layers=(0,)" in str(answer)
    with pytest.raises(ValueError, match="linear attention"):
        exsel.upgrade(hybrid, exclusive=True)
    exsel.upgrade(hybrid, exclusive=ExclusiveConfig(layers=answer.possible_layers("exclusive")))
    exsel.downgrade(hybrid)


def test_it_follows_the_layers_that_are_asked_for() -> None:
    model = LlamaForCausalLM(llama_config())
    answer = exsel.support(model, exclusive=ExclusiveConfig(layers="last:1"), selective=False)
    assert [(layer.exclusive, layer.selective) for layer in answer.layers] == [("no", "no"), ("yes", "no")]
    with pytest.raises(ValueError, match="layers 0 to 1"):
        exsel.support(model, exclusive=ExclusiveConfig(layers=(5,)))


def test_it_is_json_and_says_the_same_of_an_upgraded_model() -> None:
    model = LlamaForCausalLM(llama_config())
    answer = exsel.support(model)
    assert json.loads(json.dumps(answer.to_dict()))["layers"][0]["cls"] == "LlamaAttention"
    assert exsel.support(exsel.upgrade(model, exclusive=True)) == answer


def test_a_model_without_attention() -> None:
    assert str(exsel.support(torch.nn.Linear(2, 2))) == "Linear has no attention layer."
