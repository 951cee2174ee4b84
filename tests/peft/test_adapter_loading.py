"""Adapters in folders: what loads them, and what is wrong with a folder that does not load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft_models import llama, lora, tokens, trained
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import exsel
from exsel.peft import SelectiveAdapterConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter, beside its base model in ``base``."""
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = SelectiveAdapterConfig(
        exclusive=exsel.ExclusiveConfig(layers="last:1"), lora=lora(), task_type="CAUSAL_LM"
    )
    trained(get_peft_model(base, config)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def expected() -> torch.Tensor:
    config = SelectiveAdapterConfig(exclusive=exsel.ExclusiveConfig(layers="last:1"), lora=lora())
    return trained(get_peft_model(llama(), config))(tokens()).logits


def test_the_folder_holds_the_new_parameters_alone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    names = {name.split("self_attn.")[1] for name in load_file(folder / WEIGHTS)}
    assert names == {
        *(f"{projection}.lora_{matrix}.weight" for projection in ("q_proj", "v_proj") for matrix in "AB"),
        *(f"exsel.adapters.temperatures.{kind}.{part}" for kind in ("query", "value")
          for part in ("weight", "position_logit")),
        "exsel.adapters.exclusive.fixed_strength",
    }  # fmt: skip


def test_peft_loads_it(folder: Path) -> None:
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded(tokens()).logits, expected())
    config = loaded.peft_config["default"]
    assert config.mechanisms() == (exsel.ExclusiveConfig(layers="last:1"), exsel.SelectiveConfig())
    assert isinstance(PeftConfig.from_pretrained(folder), SelectiveAdapterConfig)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(llama(), folder, adapter_name="another", **options)
        assert torch.equal(loaded(tokens()).logits, expected())


def test_transformers_loads_it_unless_it_holds_lora(folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot have lora= inside: load it with AutoPeftModelForCausalLM"):
        AutoModelForCausalLM.from_pretrained(folder)
    trained(get_peft_model(llama(), SelectiveAdapterConfig())).save_pretrained(folder)
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"base_model_name_or_path": str(folder.parent / "base")}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(
        model(tokens()).logits, trained(get_peft_model(llama(), SelectiveAdapterConfig()))(tokens()).logits
    )


def test_where_exsel_peft_is_not_imported_nothing_loads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        monkeypatch.delitem(mapping, "EXSEL_SELECTIVE")
    loads = (
        AutoPeftModelForCausalLM.from_pretrained,
        AutoModelForCausalLM.from_pretrained,
        lambda path: PeftModel.from_pretrained(llama(), path),
        lambda path: llama().load_adapter(path),
    )
    for load in loads:
        with pytest.raises(KeyError, match="EXSEL_SELECTIVE"):
            load(folder)


def rewrite_config(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(settings | values))

    return damage


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40])


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def rewrite_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return damage


QUERY = "base_model.model.model.layers.1.self_attn.exsel.adapters.temperatures.query.weight"
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

DAMAGES = {
    "truncated": (truncate, "is not a readable safetensors file"),
    "garbage": (lambda folder: (folder / WEIGHTS).write_bytes(b"cos\nsystem\n"), "is not a readable safetensors file"),
    "pickle": (pickle, r"adapter_model\.bin is a pickle, which can run code"),
    "newer": (rewrite_config(window=4), "has no field 'window': .* a newer version"),
    "newer exclusive": (rewrite_config(exclusive={"strength": 1.0, "gate": 1}), "ExclusiveConfig has no field 'gate'"),
    "newer lora": (rewrite_config(lora={"r": 4, "gate": 1}), "LoraConfig has no field 'gate'"),
    "bad value": (rewrite_config(token="rnn"), "token must be one of"),
    "other layers": (rewrite_config(layers=[7]), "names layer 7, but the model has layers 0 to 1"),
    "other options": (rewrite_config(key=True), "temperatures.key.*is missing"),
    "missing": (rewrite_weights(lambda weights: weights.pop(QUERY)), "layers.1.*query.weight is missing"),
    "missing lora": (rewrite_weights(lambda weights: weights.pop(LORA)), "q_proj.lora_A.*weight is missing"),
    "unexpected": (
        rewrite_weights(lambda weights: weights.update({"../../etc/passwd": torch.ones(1)})),
        "../../etc/passwd belongs to nothing here",
    ),
    "shape": (
        rewrite_weights(lambda weights: weights.update({QUERY: torch.ones(3, 8)})),
        r"query.weight has the shape \(3, 8\), here it has \(4, 8\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_refused_and_the_model_left_as_it_was(kind: str, folder: Path) -> None:
    damage, message = DAMAGES[kind]
    damage(folder)
    model = llama()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, folder)
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(tokens()).logits, llama()(tokens()).logits)

    adapted = trained(get_peft_model(model, SelectiveAdapterConfig(exclusive=True), adapter_name="mine"))
    logits = adapted(tokens()).logits
    with pytest.raises(ValueError, match=message):
        adapted.load_adapter(folder, "theirs")
    assert list(adapted.peft_config) == ["mine"]
    assert not any("lora_" in name or "theirs" in name for name, _ in adapted.named_parameters())
    assert torch.equal(adapted(tokens()).logits, logits)


def test_bad_weights_do_not_replace_those_of_an_adapter_in_use(folder: Path) -> None:
    model = PeftModel.from_pretrained(llama(), folder)
    rewrite_weights(lambda weights: weights.update({QUERY: torch.ones(3, 8)}))(folder)
    with pytest.raises(ValueError, match="has the shape"):
        model.load_adapter(folder, "default")
    assert torch.equal(model(tokens()).logits, expected())


def test_empty_fields_of_another_peft_are_passed_over(folder: Path) -> None:
    rewrite_config(new_option_of_peft=None)(folder)
    with pytest.warns(UserWarning, match="new_option_of_peft"):
        loaded = PeftModel.from_pretrained(llama(), folder)
    assert torch.equal(loaded(tokens()).logits, expected())
