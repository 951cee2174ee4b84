"""LoRA on the projections that the mechanisms read: in one adapter, and as adapters of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_models import llama, lora, tokens, trained
from torch import Tensor, nn

import exsel
from exsel.peft import ExclusiveAdapterConfig, SelectiveAdapterConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:Already found a `peft_config` attribute:UserWarning",  # PEFT's word for a second method
)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_temperatures_read_the_projections_with_lora(options: dict[str, Any]) -> None:
    model = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, key=True, lora=lora(**options))))
    logits = model(tokens()).logits
    without = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, key=True)))
    assert not torch.allclose(logits, without(tokens()).logits, atol=1e-3)
    # Here LoRA is in the weights themselves, so there is no other projection that could be read.
    merged = model.merge_and_unload(safe_merge=True)
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(tokens()).logits, logits, atol=2e-5, rtol=1e-4)


def test_the_value_taken_away_is_the_value_mixed_with_loras_dropout() -> None:
    model = trained(
        get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, lora=lora(lora_dropout=0.5)))
    ).train()
    layer = model.base_model.model.model.layers[1].self_attn
    values: list[Tensor] = []
    inputs: list[Tensor] = []
    mixed: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0])
        values.append(output)

    hook = layer.v_proj.register_forward_hook(keep)
    layer.o_proj.register_forward_pre_hook(lambda module, arguments: mixed.append(arguments[0]))
    model(tokens())
    hook.remove()
    assert len(values) == len(mixed) == 1
    value = values[0].unflatten(-1, (2, 8)).repeat_interleave(2, dim=-2)
    z = mixed[0].unflatten(-1, (4, 8))
    cosine = nn.functional.cosine_similarity(z[:, 1:], value[:, 1:], dim=-1)
    assert cosine.abs().max() < 1e-5
    with torch.no_grad():  # its input again, with another dropout: what a second projection would have found
        recomputed = layer.v_proj(inputs[0]).unflatten(-1, (2, 8)).repeat_interleave(2, dim=-2)
    assert nn.functional.cosine_similarity(z[:, 1:], recomputed[:, 1:], dim=-1).abs().max() > 0.1


def test_both_are_saved_in_one_adapter(tmp_path: Path) -> None:
    for index, config in enumerate(
        (SelectiveAdapterConfig(lora=lora(use_dora=True)), ExclusiveAdapterConfig(lora=lora()))
    ):
        model = trained(get_peft_model(llama(), config))
        model.save_pretrained(tmp_path / str(index))
        loaded = PeftModel.from_pretrained(llama(), tmp_path / str(index))
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        loaded.load_adapter(tmp_path / str(index), "again", is_trainable=True)
        loaded.set_adapter("again")
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
        assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == {
            name for name, _ in loaded.named_parameters() if ".again." in f"{name}."
        }


@pytest.mark.parametrize("lora_first", [True, False])
def test_adapters_of_their_own_go_together_in_either_order(lora_first: bool, tmp_path: Path) -> None:
    steps = [(lora(), "lora"), (SelectiveAdapterConfig(exclusive=True), "temperature")]
    model = llama()
    for config, name in steps if lora_first else reversed(steps):
        model.add_adapter(config, name)
    trained(model).set_adapter(["lora", "temperature"])

    one = get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, lora=lora()))
    own = dict(one.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inside = name.replace(".lora.", ".default.").replace(".temperature.", ".default.")
            own[f"base_model.model.{inside}"].copy_(parameter)
    assert torch.equal(model(tokens()).logits, one(tokens()).logits)

    model.set_adapter("temperature")
    model.save_pretrained(tmp_path)
    loaded = llama()
    loaded.load_adapter(tmp_path, "default")
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    model.disable_adapters()
    assert torch.equal(model(tokens()).logits, llama()(tokens()).logits)


def test_an_adapter_of_the_same_name_is_not_overwritten() -> None:
    model = get_peft_model(llama(), lora()).base_model.model
    with (
        pytest.warns(UserWarning, match="modify a model with PEFT for a second time"),
        pytest.raises(ValueError, match="has an adapter 'default' already"),
    ):
        get_peft_model(model, SelectiveAdapterConfig())
    assert model.peft_config["default"].peft_type == "LORA"


def test_lora_goes_onto_an_upgraded_model() -> None:
    model = get_peft_model(exsel.upgrade(llama(), exclusive=True), lora())
    trained(model)
    one = trained(get_peft_model(llama(), ExclusiveAdapterConfig(lora=lora())))
    assert torch.equal(model(tokens()).logits, one(tokens()).logits)
