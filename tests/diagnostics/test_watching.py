"""What watching leaves behind (nothing), and the mechanisms under watch."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exsel
from diagnostics.brute_force import by_token, one_sequence
from diagnostics.test_diagnose import observed
from exsel import ExclusiveConfig, SelectiveConfig
from exsel.diagnostics.observing import Observer
from exsel.diagnostics.watching import watch
from models.small_models import small_model
from upgrading.architectures import IDS, TOKENS, inputs, plain, upgraded

# PEFT's.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")

FORMS = {
    "shared": SelectiveConfig(),
    "mlp": SelectiveConfig(token="mlp"),
    "frequency": SelectiveConfig(token="frequency"),
    "none": SelectiveConfig(token="none"),
    "key": SelectiveConfig(key=True, per_head=False, position_per_head=False, value_position=False),
}


def state(model: Any) -> list[Any]:
    return [
        [(name, type(module), module.training, dict(module._forward_hooks)) for name, module in model.named_modules()],
        list(model.state_dict()),
        getattr(getattr(model, "config", None), "_attn_implementation", None),
        [vars(module).get("forward") for module in model.modules()],
    ]


@torch.no_grad()
def first_output(model: Any, batch: dict[str, Tensor]) -> Tensor:
    output: Tensor = model(**batch)[0]
    return output


@pytest.mark.parametrize("make", [plain, upgraded])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom", "bert", "vit", "t5"])
def test_computes_what_it_did(make: Any, name: str) -> None:
    model = make(name)
    before, as_it_was = first_output(model, inputs(name)), state(model)
    with watch(model, Observer()):
        during = first_output(model, inputs(name))
        assert state(model) != as_it_was
    assert torch.equal(during, before)
    assert state(model) == as_it_was
    assert torch.equal(first_output(model, inputs(name)), before)


def test_after_an_error_too() -> None:
    model = upgraded("llama").train()
    model.model.layers[0].mlp.eval()
    model.config._attn_implementation_internal = "exsel"
    as_it_was = state(model)
    with contextlib.suppress(ZeroDivisionError), watch(model, Observer()):
        assert model.config._attn_implementation == "sdpa"
        raise ZeroDivisionError
    assert state(model) == as_it_was
    with pytest.raises(ValueError, match="empty"):
        exsel.diagnose(model, [IDS, {}])
    assert state(model) == as_it_was


@pytest.mark.parametrize("form", FORMS)
def test_our_own_model(form: str) -> None:
    model: Any = small_model(exclusive=ExclusiveConfig(strength="learned"), selective=FORMS[form]).double()
    if form == "frequency":
        model.model.set_token_counts(torch.arange(1, 62))
    as_it_was = state(model)
    diagnosis = exsel.diagnose(model, [IDS])
    assert state(model) == as_it_was
    own: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _m, _i, output: own.append(output))
    calls = observed(model, {"input_ids": IDS})
    # observed() works on a copy, whose hooks are these.
    for layer, call, flat in zip(diagnosis.layers, calls, own, strict=True):
        value = flat.unflatten(-1, (4, -1)).transpose(1, 2)
        tau = (call.value * value).sum(-1) / value.square().sum(-1)
        call.value = value
        expected = by_token(call, one_sequence(2, TOKENS))
        metrics = layer["metrics"]
        for name in ("similarity", "self_weight", "entropy", "spikiness", "sink_mass", "centred_similarity"):
            assert metrics[name]["mean"] == pytest.approx(sum(expected[name].values()) / len(expected[name])), name
        if "value_temperature" in metrics:
            assert metrics["value_temperature"]["heads"] == pytest.approx(tau.mean((0, 2)).tolist())
        assert ("key_temperature" in metrics) == (form == "key")
        attention = model.get_submodule(layer["name"])
        assert layer["strength"] == pytest.approx(attention.exclusive.alpha().tolist())
        z = exsel.exclude(call.y, value, strength=attention.exclusive.alpha())
        cosines = torch.cosine_similarity(z, value, dim=-1)
        assert metrics["similarity_after"]["heads"] == pytest.approx(cosines.mean((0, 2)).tolist())


def test_full_exclusion_leaves_nothing() -> None:
    for layer in exsel.diagnose(small_model(exclusive=ExclusiveConfig()), [IDS]).layers:
        assert layer["strength"] == [1.0] * 4
        assert layer["metrics"]["similarity_after"]["most"] < 1e-4
        assert layer["metrics"]["similarity"]["buckets"][0] == pytest.approx(1.0)
        assert layer["gaps"]["query_temperature"] == "no temperatures"


@pytest.mark.parametrize("implementation", ["sdpa", "exsel", "eager"])
def test_upgraded(implementation: str) -> None:
    model = upgraded("llama", exclusive=ExclusiveConfig(strength=0.5)).double()
    taus: list[Tensor] = []
    (first, _) = (layer.self_attn for layer in model.model.layers)
    position = torch.arange(1, TOKENS + 1).log()
    temperature = first.exsel.temperatures["query"]

    def by_hand(_module: Any, _inputs: Any, output: Tensor) -> None:
        query = output.unflatten(-1, (4, 8)).transpose(1, 2)
        token = (nn.functional.gelu(query) * temperature.weight[:, None]).sum(-1).tanh()
        taus.append(token + 1 + temperature.position_logit.sigmoid()[:, None] * position)

    model.set_attn_implementation(implementation)
    handle = first.q_proj.register_forward_hook(by_hand)
    (layer, _) = exsel.diagnose(model, [IDS]).layers
    handle.remove()
    assert model.config._attn_implementation == implementation
    assert layer["strength"] == [0.5] * 4
    assert layer["gaps"] == {"key_temperature": "this layer has none for keys"}
    assert layer["metrics"]["query_temperature"]["heads"] == pytest.approx(taus[0].mean((0, 2)).tolist())


def test_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    from exsel.peft import SelectiveAdapterConfig

    adapted = peft.get_peft_model(plain("llama"), SelectiveAdapterConfig(exclusive=True))
    before, as_it_was = first_output(adapted, {"input_ids": IDS}), state(adapted)
    diagnosis = exsel.diagnose(adapted, [IDS])
    assert state(adapted) == as_it_was
    assert torch.equal(first_output(adapted, {"input_ids": IDS}), before)
    assert [layer["strength"] for layer in diagnosis.layers] == [[1.0] * 4] * 2
    for layer in diagnosis.layers:
        assert {"value_temperature", "self_weight", "token_norm"} <= layer["metrics"].keys()
    with adapted.disable_adapter():
        (layer, _) = exsel.diagnose(adapted, [IDS]).layers
    assert layer["strength"] is None
    assert layer["gaps"]["value_temperature"] == "none was computed for its tokens"


def test_lora_is_part_of_the_map() -> None:
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    adapted = peft.get_peft_model(plain("llama").double(), peft.LoraConfig(**options))
    found = exsel.diagnose(adapted, [IDS]).layers[0]["metrics"]["operator_norm"]["heads"]
    merged = exsel.diagnose(adapted.merge_and_unload(), [IDS]).layers[0]["metrics"]["operator_norm"]["heads"]
    assert found == pytest.approx(merged)


def test_pytorchs_own_layer() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(61, 16)
            self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dtype=torch.float64)

        def forward(self, input_ids: Tensor) -> Tensor:
            hidden: Tensor = self.layer(self.embed(input_ids).double())
            return hidden

    (layer,) = exsel.diagnose(Encoder(), [IDS]).layers
    assert not layer["is_causal"]
    assert {"self_weight", "similarity", "entropy"} <= layer["metrics"].keys()
    assert layer["gaps"]["token_norm"] == "its projections cannot be applied by themselves"


def test_low_precision_is_checked_in_float32() -> None:
    model = plain("llama").bfloat16()
    exact, found = (exsel.diagnose(each, [IDS]).layers[0]["metrics"] for each in (plain("llama"), model))
    for name in ("similarity", "self_weight", "entropy"):
        assert found[name]["mean"] == pytest.approx(exact[name]["mean"], abs=0.02)


def test_a_layer_of_ours_says_why_not() -> None:
    with pytest.raises(ValueError, match="SelfAttention: it calls exsel's own operator"):
        exsel.diagnose(nn.Sequential(exsel.nn.SelfAttention(16, 4)), [IDS])
