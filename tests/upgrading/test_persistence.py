"""Saved and loaded, an upgraded transformers model is the same, and what cannot be saved so is refused."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    GenerationConfig,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlavaForConditionalGeneration,
    T5EncoderModel,
    T5ForConditionalGeneration,
    pipeline,
)

import exsel
from exsel import ExclusiveConfig, ExselForCausalLM, SelectiveConfig
from exsel.errors import ExselError, LoadError
from exsel.model_folder import MODEL_TYPE
from exsel.training.mechanism_parameters import scalar_names
from exsel.upgrading import Upgraded
from exsel.upgrading.description import describe
from models.small_models import small_model
from upgrading.upgraded_models import (
    IDS,
    bert_config,
    gpt2,
    llama,
    llama_config,
    logits,
    plain_llava,
    plain_t5,
    upgraded,
)


def assert_same(loaded: nn.Module, model: nn.Module) -> None:
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert upgraded_modules(loaded) == upgraded_modules(model)
    assert isinstance(loaded.config, getattr(model.config, "plain_class", type(model.config)))
    assert saved_values(loaded) == saved_values(model)


def upgraded_modules(model: nn.Module) -> dict[str, str]:
    return {name: repr(module) for name, module in model.named_modules() if isinstance(module, Upgraded)}


def saved_values(model: Any) -> dict[str, Any]:
    """All but what transformers writes into configurations when it loads: from where, and the parts' dtype."""

    def kept(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, dict) else value
            for name, value in values.items()
            if name not in ("_name_or_path", "dtype", "exsel")
        }

    return kept(model.config.to_dict())


def read_config(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return values


def edit_config(folder: Path, **entries: Any) -> None:
    values = read_config(folder)
    values["exsel"] |= entries
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("exclusive", "selective"),
    [
        (True, None),
        (ExclusiveConfig(strength=0.5, layers="last:1"), None),
        (None, SelectiveConfig(token="mlp", key=True, per_head=False)),
        (None, SelectiveConfig(token="linear", position_form="double_exponential")),
        (None, SelectiveConfig(token="constant", position=False, value_position=False)),
        (ExclusiveConfig(strength="learned", layers=(0,)), SelectiveConfig(position_per_head=False, layers=(1,))),
    ],
    ids=["exclusive", "fixed in one", "selective", "linear", "constant", "one each"],
)
def test_round_trip(exclusive: Any, selective: Any, tmp_path: Path) -> None:
    model = llama(exclusive, selective)
    config = model.config
    model.save_pretrained(tmp_path)
    assert model.config is config
    assert isinstance(config, LlamaConfig)
    assert config.exsel["upgrades"] == read_config(tmp_path)["exsel"]["upgrades"]
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        loaded = load(tmp_path)
        assert_same(loaded, model)
        assert not loaded.training
        assert torch.equal(logits(loaded), logits(model))
        with torch.no_grad():
            assert torch.equal(loaded.generate(IDS, max_new_tokens=3), model.generate(IDS, max_new_tokens=3))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert read_config(again) == read_config(tmp_path)
    exsel.downgrade(loaded)
    exsel.downgrade(model)
    assert_same(loaded, model)
    loaded.save_pretrained(tmp_path)
    assert read_config(tmp_path)["model_type"] == "llama"


def test_config_file_wraps_the_base_model_s(tmp_path: Path) -> None:
    model = llama(ExclusiveConfig(layers=(1,)), None)
    model.save_pretrained(tmp_path)
    exsel.downgrade(model).save_pretrained(tmp_path / "plain")
    values = read_config(tmp_path)
    assert values["model_type"] == MODEL_TYPE
    assert values["architectures"] == ["UpgradedLlamaForCausalLM"]
    assert values["exsel"] == {
        "format": 1,
        "version": exsel.__version__,
        "upgrades": [{"modules": ["layers.1.self_attn"], "exclusive": {"strength": 1.0}, "selective": None}],
        "base": read_config(tmp_path / "plain"),
    }


def test_fused_layout_and_tied_weights(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert type(loaded) is GPT2LMHeadModel
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(logits(loaded), logits(model))


def test_sharded(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(exsel.from_pretrained(tmp_path), model)


def test_options_of_loading(tmp_path: Path) -> None:
    model = llama()
    model.generation_config = GenerationConfig(max_new_tokens=7, eos_token_id=5)
    model.save_pretrained(tmp_path / "inner", state_dict={**model.state_dict()})
    loaded = exsel.from_pretrained(
        tmp_path, subfolder="inner", dtype=torch.bfloat16, attn_implementation="eager", use_cache=False
    )
    scalars = scalar_names(loaded)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.float32 if name in scalars else torch.bfloat16), name
    assert loaded.config.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert loaded.config.use_cache is False
    assert (loaded.generation_config.max_new_tokens, loaded.generation_config.eos_token_id) == (7, 5)
    assert (logits(loaded).float() - logits(model)).norm() < 0.1 * logits(model).norm()
    loaded, information = AutoModelForCausalLM.from_pretrained(tmp_path / "inner", output_loading_info=True)
    assert not information["missing_keys"]
    assert not information["unexpected_keys"]


def test_device_map(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = llama()
    model.save_pretrained(tmp_path)
    loaded = exsel.from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(logits(loaded), logits(model))


def test_base_model_of_a_head_and_back(tmp_path: Path) -> None:
    model = llama(ExclusiveConfig(layers=(1,)), True)
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is LlamaModel
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    for part, folder in ((model.model, tmp_path / "part"), (base, tmp_path / "base")):
        part.save_pretrained(folder)
        assert type(exsel.from_pretrained(folder)) is LlamaModel
        assert_same(exsel.from_pretrained(folder), part)
    head = AutoModelForCausalLM.from_pretrained(tmp_path / "part")
    assert upgraded_modules(head) == upgraded_modules(model)
    assert torch.equal(
        head.model.layers[0].self_attn.exsel.temperatures["query"].weight,
        model.model.layers[0].self_attn.exsel.temperatures["query"].weight,
    )


def test_task_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = upgraded(BertForSequenceClassification(bert_config()))
    model.save_pretrained(tmp_path)
    for load in (exsel.from_pretrained, AutoModelForSequenceClassification.from_pretrained):
        loaded = load(tmp_path)
        assert_same(loaded, model)
        assert loaded.config.num_labels == 3
        assert torch.equal(logits(loaded), logits(model))
    assert type(AutoModel.from_pretrained(tmp_path)) is BertModel
    five = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert logits(five).shape == (2, 5)
    assert upgraded_modules(five) == upgraded_modules(model)


def test_a_part_of_the_saved_model(tmp_path: Path) -> None:
    """An encoder loads from the folder of encoder and decoder, with its own mechanisms."""
    model = plain_t5()
    exsel.upgrade(model, exclusive=ExclusiveConfig(layers="first:3"))
    model.save_pretrained(tmp_path)
    assert_same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)
    encoder = T5EncoderModel.from_pretrained
    with pytest.raises(StrictDataclassError, match="import exsel"):
        encoder(tmp_path)
    values = read_config(tmp_path)
    values["exsel"]["base"]["architectures"] = ["T5EncoderModel"]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    loaded = exsel.from_pretrained(tmp_path)
    assert type(loaded) is T5EncoderModel
    with torch.no_grad():
        assert torch.equal(loaded(IDS)[0], model.encoder(IDS)[0])
    assert upgraded_modules(loaded) == {
        name: text for name, text in upgraded_modules(model).items() if name.startswith("encoder.")
    }


@pytest.mark.parametrize("what", ["all", "language_model", "layers of both"])
def test_composite_model(what: str, tmp_path: Path) -> None:
    """However much of it was upgraded, and by how many calls, the whole is saved as it is."""
    model = plain_llava()
    if what == "all":
        upgraded(model)
    else:
        upgraded(model.model.language_model, True, None)
    if what == "layers of both":
        upgraded(model.model.vision_tower, None, SelectiveConfig(position=False, value_position=False))
        exsel.downgrade(model.model.language_model.layers[0])
    images = {
        "input_ids": torch.cat([torch.full((2, 4), 60), IDS.clamp_max(59)], dim=1),
        "pixel_values": torch.randn(2, 3, 16, 16),
    }
    expected = logits(model, **images)
    model.save_pretrained(tmp_path)
    loaded = exsel.from_pretrained(tmp_path)
    assert type(loaded) is LlavaForConditionalGeneration
    assert_same(loaded, model)
    assert torch.equal(logits(loaded, **images), expected)
    model.model.language_model.save_pretrained(tmp_path / "part")
    assert_same(exsel.from_pretrained(tmp_path / "part"), model.model.language_model)


def test_two_models_may_share_a_configuration(tmp_path: Path) -> None:
    config = llama_config(name_or_path="here")
    one, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
    exsel.upgrade(one, exclusive=True)
    assert other.config is config
    assert type(config) is LlamaConfig
    assert not hasattr(config, "exsel")
    values = copy.deepcopy(config.to_dict())
    exsel.downgrade(one)
    assert type(one.config) is LlamaConfig
    assert one.config.to_dict() == values
    exsel.upgrade(one, exclusive=True)
    other.save_pretrained(tmp_path)
    assert read_config(tmp_path)["model_type"] == "llama"
    assert not upgraded_modules(exsel.from_pretrained(tmp_path))


def test_configuration_alone(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, LlamaConfig)
    assert type(config).__name__ == "LlamaConfig"
    assert config.model_type == "llama"
    assert config.to_dict()["exsel"]["upgrades"] == read_config(tmp_path)["exsel"]["upgrades"]
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), type(config).from_dict(config.to_dict())):
        assert type(copied) is type(config)
        assert copied == config
    config.save_pretrained(tmp_path / "config")
    assert read_config(tmp_path / "config") == read_config(tmp_path)
    built = AutoModelForCausalLM.from_config(config)
    assert type(built) is LlamaForCausalLM
    assert upgraded_modules(built) == upgraded_modules(model)
    assert hasattr(config, "exsel"), "what was built from it must leave it as it was"
    with pytest.raises(ExselError, match="LlamaForCausalLM by itself would drop the mechanisms"):
        LlamaForCausalLM(config)
    with pytest.raises(ExselError, match="LlamaForCausalLM by itself would drop the mechanisms"):
        LlamaForCausalLM.from_pretrained(tmp_path, config=config)


def test_model_classes_by_name_refuse_the_folder(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    for load in (LlamaForCausalLM.from_pretrained, LlamaConfig.from_pretrained, BertModel.from_pretrained):
        with pytest.raises(StrictDataclassError, match=r"import exsel; exsel.from_pretrained\(folder\)"):
            load(tmp_path)


def test_model_card(tmp_path: Path) -> None:
    base, folder, again = tmp_path / "base", tmp_path / "folder", tmp_path / "again"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.", encoding="utf-8")
    model = llama(0.5, None)
    model.config._name_or_path = str(base)
    model.save_pretrained(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\nlicense: apache-2.0\ntags:\n- exsel\n---\n")
    assert "import exsel" in card
    assert "* exclusive attention in layers.0.self_attn, layers.1.self_attn: strength 0.5\n" in card
    assert str(tmp_path) not in card
    exsel.from_pretrained(folder).save_pretrained(again)
    assert (again / "README.md").read_text(encoding="utf-8") == card
    model.config._name_or_path = "organisation/base"
    model.save_pretrained(folder)
    assert "base_model: organisation/base\n" in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text("Mine.", encoding="utf-8")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == "Mine."


def test_pipeline(tmp_path: Path, tokenizer_files: Path) -> None:
    model = llama()
    model.save_pretrained(tokenizer_files)
    generate = pipeline("text-generation", model=str(tokenizer_files), device="cpu")
    assert_same(generate.model, model)
    assert len(generate("ab", max_new_tokens=2, return_tensors=True)[0]["generated_token_ids"]) == 4


def test_a_folder_without_mechanisms_loads_as_what_it_is(tmp_path: Path) -> None:
    ours = small_model(exclusive=ExclusiveConfig(), selective=SelectiveConfig())
    ours.save_pretrained(tmp_path / "ours")
    loaded = exsel.from_pretrained(tmp_path / "ours")
    assert type(loaded) is ExselForCausalLM
    assert torch.equal(logits(loaded.eval()), logits(ours))
    t5 = plain_t5()
    t5.save_pretrained(tmp_path / "t5")
    loaded = exsel.from_pretrained(tmp_path / "t5", dtype=torch.float64)
    assert type(loaded) is T5ForConditionalGeneration
    assert loaded.dtype == torch.float64
    t5.encoder.config.save_pretrained(tmp_path / "none")
    values = read_config(tmp_path / "t5") | {"architectures": ["NoSuchModel"]}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ExselError, match="saved by NoSuchModel, which is unknown here"):
        exsel.from_pretrained(tmp_path / "t5")


def test_newer_format(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    edit_config(tmp_path, format=2, version="0.9.1")
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ExselError, match=r"exsel 0\.9\.1 in format 2.*pip install -U 'exsel>=0\.9\.1'"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "1"}, "has no format"),
        ({"upgrades": []}, "names no upgraded modules"),
        ({"upgrades": ["layers.0.self_attn"]}, "for an upgrade"),
        ({"upgrades": [{"modules": ["layers.0.self_attn"]}]}, "without a mechanism"),
        ({"upgrades": [{"modules": [3], "exclusive": {}}]}, "has modules"),
        ({"upgrades": [{"modules": ["x"], "exclusive": {"strenght": 1}}]}, "has no field 'strenght'"),
        ({"upgrades": [{"modules": ["x"], "exclusive": 1}]}, "is damaged"),
        ({"upgrades": [{"modules": ["layers.7.self_attn"], "exclusive": {}}]}, r"no attention 'layers\.7\.self_attn'"),
        (
            {"upgrades": [{"modules": ["encoder.0"], "exclusive": {}}]},
            r"no attention 'encoder\.0'.*layers\.0\.self_attn",
        ),
        ({"format": 0}, "has format 0"),
        ({"upgrades": [{"modules": ["x", "x"], "exclusive": {}}]}, "the module 'x' twice"),
        (
            {"upgrades": [{"modules": ["x"], "exclusive": {}}, {"modules": ["x"], "selective": {}}]},
            "the module 'x' twice",
        ),
        (
            {"upgrades": [{"modules": ["x"], "exclusive": {}}, {"modules": ["y"], "exclusive": {"strength": 1}}]},
            "the same mechanisms twice",
        ),
        ({"upgrades": [{"modules": [""], "exclusive": {}}]}, "has modules"),
        ({"upgrades": [{"modules": ["x"], "exclusive": {"layers": "all"}}]}, "has layers"),
        ({"upgrades": [{"modules": ["x"], "exclusive": {}, "positions": 1}]}, "'positions' in an upgrade"),
        ({"base": None}, "has no base model"),
        ({"base": {"model_type": "llama", "exsel": {}}}, "an upgraded model for its base"),
        ({"base": {"model_type": "llama", "num_attention_heads": 0}}, "base is damaged|cannot be built"),
        ({"base": {"model_type": "llama", "num_hidden_layers": "2"}}, "base is damaged"),
        ({"base": {"model_type": "no_such_type"}}, "base is a 'no_such_type'"),
        ({"base": {"model_type": MODEL_TYPE}}, "base is a 'exsel_upgraded: import exsel first'"),
    ],
)
def test_damaged_entry(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    edit_config(tmp_path, **entries)
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(LoadError, match=message):
            load(tmp_path)
    values = read_config(tmp_path)
    del values["exsel"]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ExselError, match="is damaged"):
        exsel.from_pretrained(tmp_path)


def test_weights_without_the_mechanisms_parameters(tmp_path: Path) -> None:
    model = llama()
    plain = {name: weight for name, weight in model.state_dict().items() if "exsel" not in name}
    model.save_pretrained(tmp_path, state_dict=plain)
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ExselError, match=r"it lacks 10 weights, such as model\.layers\.0"):
            load(tmp_path)


def test_safetensors_alone(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ExselError, match="safetensors files alone"):
            load(tmp_path, use_safetensors=False)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ExselError, match=r"in pickle files alone \(pytorch_model\.bin\)"):
            load(tmp_path)
    with pytest.raises(ExselError, match="runs no code"):
        exsel.from_pretrained(tmp_path, trust_remote_code=True)


def test_code_of_its_own_is_refused(tmp_path: Path) -> None:
    class OwnConfig(LlamaConfig):
        model_type = "own"

    class OwnModel(LlamaForCausalLM):
        config_class = OwnConfig

    model = upgraded(OwnModel(OwnConfig(**llama().config.to_dict())))
    with pytest.raises(ExselError, match="OwnModel has code that transformers would not find again"):
        model.save_pretrained(tmp_path)
    assert isinstance(model.config, OwnConfig)
    exsel.downgrade(model).save_pretrained(tmp_path)
    assert type(model.config) is OwnConfig
    assert read_config(tmp_path)["model_type"] == "own"


def test_save_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = llama()
    config = model.config
    with pytest.raises(AttributeError):
        model.save_pretrained(tmp_path, state_dict={"a": 1})
    assert model.config is config
    assert config.exsel == describe(model)


def test_the_configuration_of_an_upgraded_model_says_so(tmp_path: Path) -> None:
    """Whatever is built from it has the mechanisms, or is refused."""
    model = llama(True, None)
    for part in (model, model.model, model.model.rotary_emb):
        assert part.config is model.config
    for build in (AutoModelForCausalLM.from_config, AutoModel.from_config):
        assert len(upgraded_modules(build(model.config))) == 2
    with pytest.raises(LoadError, match="LlamaForCausalLM by itself would drop the mechanisms"):
        LlamaForCausalLM(model.config)
    assert upgraded_modules(copy.deepcopy(model)) == upgraded_modules(model)
    assert pickle.loads(pickle.dumps(model)).config == model.config
    assert not hasattr(model.generation_config, "exsel")
    model.config.save_pretrained(tmp_path)
    pytest.importorskip("accelerate").Accelerator(cpu=True).save_model(model, str(tmp_path))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config._name_or_path == loaded.name_or_path == str(tmp_path)


def test_a_plain_model_does_not_take_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = llama(True, None)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*exclusive\.fixed_strength"):
        LlamaForCausalLM(llama_config()).load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)
    with caplog.at_level("WARNING", logger="transformers"):
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            LlamaForCausalLM.from_pretrained(tmp_path, config=llama_config())
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
    assert re.search(r"exclusive\.fixed_strength.*UNEXPECTED", caplog.text)


def test_a_strength_that_the_weights_contradict(tmp_path: Path) -> None:
    llama(0.5, None).save_pretrained(tmp_path / "upgraded")
    edit_config(
        tmp_path / "upgraded",
        upgrades=[
            {
                "modules": ["layers.0.self_attn", "layers.1.self_attn"],
                "exclusive": {"strength": 0.25},
                "selective": None,
            }
        ],
    )
    small_model(exclusive=0.5).save_pretrained(tmp_path / "own")
    values = read_config(tmp_path / "own")
    values["exclusive"]["strength"] = 0.25
    (tmp_path / "own" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    for folder in ("upgraded", "own"):
        for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
            with pytest.raises(LoadError, match=r"was saved with a strength of '0\.5', and has 0\.25 here"):
                load(tmp_path / folder)
    plain = small_model()
    plain.save_pretrained(tmp_path / "own", state_dict=plain.state_dict())
    values["exclusive"]["strength"] = 0.5
    (tmp_path / "own" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ExselError, match=r"fixed_strength|do not know of it"):
        exsel.from_pretrained(tmp_path / "own")


def test_what_was_upgraded_in_memory_is_found_nowhere(tmp_path: Path) -> None:
    """Whoever builds a reference model from where the configuration says that it is gets this one, or an error."""
    exsel.downgrade(llama()).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    exsel.upgrade(model, exclusive=True)
    for name in (model.name_or_path, model.config._name_or_path):
        with pytest.raises(OSError, match=r"upgraded in memory: save_pretrained it to a folder"):
            AutoModelForCausalLM.from_pretrained(name)
    model.save_pretrained(tmp_path / "upgraded")
    loaded = exsel.from_pretrained(tmp_path / "upgraded")
    assert_same(AutoModelForCausalLM.from_pretrained(loaded.config._name_or_path), model)
    pytest.importorskip("trl")
    from trl.trainer.utils import create_model_from_path, get_config_model_id

    assert_same(create_model_from_path(get_config_model_id(loaded.config)), model)
    exsel.downgrade(model)
    assert model.name_or_path == model.config._name_or_path == str(tmp_path / "base")
