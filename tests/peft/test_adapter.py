"""An adapter in a model: what is trained, what is computed, how it is switched and taken out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import llama, lora, tokens, trained

import exsel
import exsel.peft
from budget import assert_greedy
from exsel.nn.mechanisms import Mechanisms
from exsel.peft import AdapterLayer, ExclusiveAdapterConfig, SelectiveAdapterConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")

ADAPTERS = {
    "selective": SelectiveAdapterConfig,
    "both": lambda **options: SelectiveAdapterConfig(exclusive=exsel.ExclusiveConfig(strength="learned"), **options),
    "exclusive": lambda **options: ExclusiveAdapterConfig(strength="learned", **options),
    "mlp": lambda **options: SelectiveAdapterConfig(token="mlp", key=True, layers="last:1", **options),
    "linear": lambda **options: SelectiveAdapterConfig(token="linear", position_form="double_exponential", **options),
    "constant": lambda **options: SelectiveAdapterConfig(token="constant", position=False, **options),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_it_computes_what_an_upgraded_model_computes(kind: str) -> None:
    config = ADAPTERS[kind]()
    model = trained(get_peft_model(llama(), config))
    exclusive, selective = config.mechanisms()
    upgraded = exsel.upgrade(llama(), exclusive=exclusive, selective=selective)
    own = {name: parameter for name, parameter in upgraded.named_parameters() if ".exsel." in name}
    adapted = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(adapted["base_model.model." + name.replace(".exsel.", ".exsel.adapters.default.")])
    assert torch.equal(model(tokens()).logits, upgraded(tokens()).logits)
    assert not torch.allclose(model(tokens()).logits, llama()(tokens()).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_only_its_parameters_are_trained(kind: str) -> None:
    model = trained(get_peft_model(llama(), ADAPTERS[kind](task_type="CAUSAL_LM")))
    model.train()
    model(tokens(), labels=tokens()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".exsel." in name), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".exsel." in name), name
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == sum(parameter.numel() for name, parameter in model.named_parameters() if ".exsel." in name)


def test_switched_off_it_is_the_model() -> None:
    model = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, lora=lora())))
    logits = model(tokens()).logits
    with model.disable_adapter():
        assert torch.equal(model(tokens()).logits, llama()(tokens()).logits)
    assert torch.equal(model(tokens()).logits, logits)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or ".exsel." in name), name


def test_it_generates_from_a_cache_what_it_computes_without() -> None:
    model = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, lora=lora(), task_type="CAUSAL_LM")))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for use_cache in (True, False):
        sequences = model.generate(input_ids=tokens(), use_cache=use_cache, **options)
        assert_greedy(model, sequences, tokens().shape[1])


def test_it_prints_what_is_in_a_layer() -> None:
    model = get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True))
    printed = str(model.base_model.model.model.layers[0].self_attn)
    for part in ("LlamaAttention(", "(exsel): AdapterLayer(", "(default): Mechanisms(", "Exclusive(strength=1.0)"):
        assert part in printed


def test_adapters_are_switched_and_deleted() -> None:
    model = get_peft_model(llama(), SelectiveAdapterConfig(layers="first:1", lora=lora()), adapter_name="first")
    plain = llama()(tokens()).logits
    model.add_adapter("second", SelectiveAdapterConfig(layers="last:1", exclusive=True))
    model.add_adapter("third", SelectiveAdapterConfig(lora=LoraConfig(r=2, target_modules=["k_proj"])))
    trained(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".first." in name), name
    logits = {}
    for name in ("first", "second", "third"):
        model.set_adapter(name)
        assert {other for other, parameter in model.named_parameters() if parameter.requires_grad} == {
            other for other, _ in model.named_parameters() if f".{name}." in other
        }
        logits[name] = model(tokens()).logits
        assert not torch.allclose(logits[name], plain, atol=1e-4)
    with pytest.warns(UserWarning, match="third was active which is now deleted"):
        model.delete_adapter("third")
    assert model.active_adapters == ["first"]
    assert torch.equal(model(tokens()).logits, logits["first"])
    model.set_adapter("second")
    model.delete_adapter("first")
    assert torch.equal(model(tokens()).logits, logits["second"])
    assert not any(".first." in name or ".third." in name for name, _ in model.named_parameters())


def test_two_adapters_at_a_time_are_refused() -> None:
    model = get_peft_model(llama(), SelectiveAdapterConfig())
    model.add_adapter("second", SelectiveAdapterConfig())
    with pytest.raises(ValueError, match="'default' and 'second' cannot both be active"):
        model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="adapter_names=… would mix adapters"):
        model(tokens(), adapter_names=["default", "second"])


@pytest.mark.parametrize("with_lora", [False, True])
def test_unloaded_it_leaves_the_model_as_it_was(with_lora: bool) -> None:
    model = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, lora=lora() if with_lora else None)))
    model.add_adapter("second", SelectiveAdapterConfig())
    base = model.unload()
    plain = llama()
    assert [type(module) for module in base.modules()] == [type(module) for module in plain.modules()]
    state, expected = base.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert not hasattr(base, "peft_config")
    get_peft_model(base, SelectiveAdapterConfig())


def test_merged_it_is_an_upgraded_model(tmp_path: Path) -> None:
    model = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True)))
    logits = model(tokens()).logits
    with pytest.raises(ValueError, match="merge_and_unload"):
        model.merge_adapter()
    merged = model.merge_and_unload()
    assert torch.equal(merged(tokens()).logits, logits)
    assert not any(isinstance(module, AdapterLayer) for module in merged.modules())
    assert sum(isinstance(module, Mechanisms) for module in merged.modules()) == 2
    merged.save_pretrained(tmp_path)
    assert torch.equal(exsel.from_pretrained(tmp_path)(tokens()).logits, logits)
    assert torch.equal(exsel.downgrade(merged)(tokens()).logits, llama()(tokens()).logits)


def test_modules_to_save_are_trained_in_full() -> None:
    model = get_peft_model(llama(), SelectiveAdapterConfig(modules_to_save=["lm_head"]))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if ".exsel." not in name} == {
        "base_model.model.lm_head.modules_to_save.default.weight"
    }


def test_it_is_there_with_exsel() -> None:
    assert exsel.__getattr__("peft") is exsel.peft


def test_the_options_are_those_of_the_mechanisms() -> None:
    for ours, theirs in (
        (SelectiveAdapterConfig, exsel.SelectiveConfig),
        (ExclusiveAdapterConfig, exsel.ExclusiveConfig),
    ):
        known = {field.name: field.default for field in fields(ours)}
        assert {field.name: known[field.name] for field in fields(theirs)} == {
            field.name: field.default for field in fields(theirs)
        }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: SelectiveAdapterConfig(query=False, value=False), "at least one of query, key and value"),
        (lambda: SelectiveAdapterConfig(token="frequency"), "token='frequency' needs each token's frequency"),
        (lambda: SelectiveAdapterConfig(tokne="mlp"), "SelectiveAdapterConfig has no field 'tokne'"),
        (
            lambda: SelectiveAdapterConfig(target_modules=["q_proj"]),
            "SelectiveAdapterConfig has no field 'target_modules'",
        ),
        (lambda: SelectiveAdapterConfig(exclusive={"strenght": 1.0}), "ExclusiveConfig has no field 'strenght'"),
        (lambda: SelectiveAdapterConfig(lora=lora(bias="all")), "lora=bias='all' is not saved from here"),
        (lambda: SelectiveAdapterConfig(lora=lora(modules_to_save=["lm_head"])), "use modules_to_save= beside lora="),
        (lambda: SelectiveAdapterConfig(lora="yes"), "lora must be a peft.LoraConfig, got str"),
        (lambda: SelectiveAdapterConfig(lora={"rank": 4}), "LoraConfig has no field 'rank'"),
        (lambda: ExclusiveAdapterConfig(), "a fixed strength has nothing to train"),
        (lambda: ExclusiveAdapterConfig(strength="strong"), "strength must be a finite number or 'learned'"),
    ],
)
def test_impossible_options_are_refused(config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (
            SelectiveAdapterConfig(layers=(5,)),
            "default",
            "layers=\\(5,\\) names layer 5, but the model has layers 0 to 1",
        ),
        (SelectiveAdapterConfig(lora=LoraConfig(target_modules=["no_such"])), "default", "no_such.* not found"),
        (SelectiveAdapterConfig(), "query", "an adapter cannot be called 'query'"),
    ],
)
def test_a_refused_model_is_left_as_it_was(config: SelectiveAdapterConfig, name: str, message: str) -> None:
    model = llama()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config, adapter_name=name)
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(tokens()).logits, llama()(tokens()).logits)

    adapted = trained(get_peft_model(llama(), SelectiveAdapterConfig(layers="first:1"), adapter_name="there"))
    before = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    logits = adapted(tokens()).logits
    with pytest.raises(ValueError, match=message):
        adapted.add_adapter(name, config)
    assert {name: parameter.requires_grad for name, parameter in adapted.named_parameters()} == before
    assert torch.equal(adapted(tokens()).logits, logits)


def test_models_that_cannot_have_it_are_refused() -> None:
    with pytest.raises(ValueError, match="has no self-attention that could be upgraded"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), SelectiveAdapterConfig())
    upgraded = exsel.upgrade(llama(), selective=True)
    logits = upgraded(tokens()).logits
    with pytest.raises(ValueError, match=r"upgraded already: exsel\.downgrade"):
        get_peft_model(upgraded, SelectiveAdapterConfig())
    assert torch.equal(upgraded(tokens()).logits, logits)
    wrapped = get_peft_model(llama(), lora())
    with (
        pytest.warns(UserWarning, match="modify a model with PEFT for a second time"),
        pytest.raises(ValueError, match=r"a PeftModel already: give LoRA .* as lora="),
    ):
        get_peft_model(wrapped, SelectiveAdapterConfig())
    assert isinstance(wrapped, PeftModel)
    assert wrapped.peft_config["default"].peft_type == "LORA"
