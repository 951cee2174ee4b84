from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import exsel
from exsel import ExclusiveConfig, SelectiveConfig
from upgrading.layer_checks import new_parameters
from upgrading.upgraded_models import IDS, gpt2_config, llama_config, logits, plain_t5


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config()).eval()


def state(model: nn.Module) -> tuple[list[type], list[str]]:
    return [type(module) for module in model.modules()], list(model.state_dict())


def test_it_returns_the_model_itself_with_both_mechanisms(model: LlamaForCausalLM) -> None:
    plain = logits(model)
    assert exsel.upgrade(model, exclusive=True, selective=True) is model
    assert not torch.allclose(logits(model), plain)
    names = {name.rpartition("exsel.")[2] for name in new_parameters(model)}
    assert names == {
        "temperatures.query.weight",
        "temperatures.query.position_logit",
        "temperatures.value.weight",
        "temperatures.value.position_logit",
    }


def test_selective_adds_under_half_a_percent_at_a_real_size() -> None:
    with torch.device("meta"):
        big = LlamaForCausalLM(
            llama_config(hidden_size=2048, intermediate_size=5632, num_attention_heads=32, num_key_value_heads=4)
        )
    plain = sum(parameter.numel() for parameter in big.parameters())
    exsel.upgrade(big, selective=True)
    new = sum(parameter.numel() for parameter in new_parameters(big).values())
    assert 0 < new < 0.005 * plain
    assert all(parameter.is_meta for parameter in new_parameters(big).values())


def test_as_it_starts_selective_without_positions_is_the_model_itself(model: LlamaForCausalLM) -> None:
    plain = logits(model)
    exsel.upgrade(model, selective=SelectiveConfig(position=False, value_position=False))
    torch.testing.assert_close(logits(model), plain)


def test_as_it_starts_with_positions_it_stays_within_their_bound(model: LlamaForCausalLM) -> None:
    plain = logits(model)
    exsel.upgrade(model, selective=True)
    # Each score and each value moves by at most σ(a) log n of itself.
    bound = 6e-4 * torch.log(torch.tensor(float(IDS.shape[1])))
    assert 0 < (logits(model) - plain).abs().max() < 20 * bound * plain.abs().max()


def test_downgrade_gives_back_every_class_name_and_bit(model: LlamaForCausalLM) -> None:
    plain, before = logits(model), state(model)
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    exsel.upgrade(model, exclusive=True, selective=True)
    assert exsel.downgrade(model) is model
    assert state(model) == before
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights
    assert torch.equal(logits(model), plain)
    assert exsel.downgrade(model) is model  # a model that is plain stays so


def test_nobody_takes_the_plain_models_folder_for_the_upgraded_model(model: LlamaForCausalLM) -> None:
    """PEFT writes it into an adapter's configuration as the base model."""
    model.name_or_path = "/models/plain"
    exsel.upgrade(model, selective=True)
    assert model.name_or_path.startswith("/models/plain, upgraded in memory: save_pretrained it")
    assert exsel.downgrade(model).name_or_path == "/models/plain"


def test_a_layer_that_fails_late_leaves_the_first_ones_alone(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exsel.upgrading import placing

    built = []

    def build(*arguments: object) -> nn.Module:
        built.append(arguments)
        if len(built) == 2:
            raise ValueError("the second")
        return nn.Module()

    monkeypatch.setattr(placing, "build_mechanisms", build)
    before = state(model)
    with pytest.raises(ValueError, match="the second"):
        exsel.upgrade(model, exclusive=True)
    assert state(model) == before


def test_a_copy_is_upgraded_and_independent(model: LlamaForCausalLM) -> None:
    exsel.upgrade(model, exclusive=True)
    other = copy.deepcopy(model)
    expected = logits(model)
    assert torch.equal(logits(other), expected)
    exsel.downgrade(other)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(other), expected)


def test_new_parameters_are_float32_and_follow_mode(model: LlamaForCausalLM) -> None:
    model.bfloat16().train()
    exsel.upgrade(model, selective=True)
    assert {parameter.dtype for parameter in new_parameters(model).values()} == {torch.float32}
    assert model.model.layers[0].self_attn.exsel.training


@pytest.mark.parametrize("layers", ["last:1", (1,), (-1,)])
def test_layers_are_chosen_by_index(model: LlamaForCausalLM, layers: str | tuple[int, ...]) -> None:
    exsel.upgrade(model, exclusive=ExclusiveConfig(layers=layers), selective=SelectiveConfig(layers="first:1"))
    first, second = (layer.self_attn.exsel for layer in model.model.layers)
    assert first.exclusive is None
    assert set(first.temperatures) == {"query", "value"}
    assert second.exclusive is not None
    assert not second.temperatures


def test_cross_attention_is_left_alone() -> None:
    t5 = plain_t5()
    exsel.upgrade(t5, exclusive=True)
    upgraded = {name.removesuffix(".exsel") for name, _ in t5.named_modules() if name.endswith(".exsel")}
    assert len(upgraded) == 4
    assert all("SelfAttention" in name for name in upgraded)


REFUSED = {
    "nothing asked for": ({}, ValueError, "needs exclusive or selective"),
    "False": ({"exclusive": False}, ValueError, "needs exclusive or selective"),
    "layer beyond": ({"exclusive": ExclusiveConfig(layers=(2,))}, ValueError, "layers 0 to 1"),
    "last k beyond": ({"selective": SelectiveConfig(layers="last:3")}, ValueError, "the model has 2"),
    "the wrong configuration": ({"exclusive": SelectiveConfig()}, TypeError, "exsel.ExclusiveConfig"),
    "a string": ({"selective": "yes"}, TypeError, "exsel.SelectiveConfig"),
    "a frequency": ({"selective": SelectiveConfig(token="frequency")}, ValueError, "token='frequency'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_and_leaves_the_model(model: LlamaForCausalLM, name: str) -> None:
    arguments, error, message = REFUSED[name]
    before = state(model)
    with pytest.raises(error, match=message):
        exsel.upgrade(model, **arguments)
    assert state(model) == before


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no self-attention"):
        exsel.upgrade(nn.Sequential(nn.Linear(4, 4)), exclusive=True)


def test_exsels_own_model_is_refused_with_the_remedy() -> None:
    layer = exsel.nn.SelfAttention(8, num_heads=2)
    with pytest.raises(ValueError, match="in its own code: choose them in its configuration"):
        exsel.upgrade(nn.Sequential(layer), exclusive=True)


def test_an_upgraded_model_is_refused_with_the_remedy(model: LlamaForCausalLM) -> None:
    exsel.upgrade(model, exclusive=True)
    with pytest.raises(ValueError, match=r"upgraded already: exsel.downgrade"):
        exsel.upgrade(model, selective=True)
    # So is one that holds an upgraded part.
    with pytest.raises(ValueError, match="upgraded already"):
        exsel.upgrade(nn.ModuleList([model]), selective=True)


def test_a_layer_that_cannot_be_upgraded_is_named_before_anything_is_changed() -> None:
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(gpt2_config())
    model.transformer.h[1].attn.reorder_and_upcast_attn = True
    before = state(model)
    with pytest.raises(ValueError, match=r"transformer.h.1.attn \(layer 1, GPT2Attention\) .*layers=\(0,\)"):
        exsel.upgrade(model, exclusive=True)
    assert state(model) == before
    exsel.upgrade(model, exclusive=ExclusiveConfig(layers=(0,)))


def test_an_upgraded_layer_called_across_says_so(model: LlamaForCausalLM) -> None:
    t5 = plain_t5()
    exsel.upgrade(t5, exclusive=True)
    layer = t5.decoder.block[0].layer[0].SelfAttention
    with pytest.raises(RuntimeError, match="cross-attention has no own values"):
        layer(torch.randn(1, 3, 32), key_value_states=torch.randn(1, 5, 32))


def test_a_path_around_the_attention_function_is_an_error(model: LlamaForCausalLM) -> None:
    exsel.upgrade(model, exclusive=True)
    layer_pass = model.model.layers[0].self_attn.exsel.begin()
    with pytest.raises(RuntimeError, match="around its attention function"):
        layer_pass.end(torch.zeros(1))
