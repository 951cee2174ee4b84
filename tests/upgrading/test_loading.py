"""A saved model is read whole, from safetensors files in its own folder, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    LlamaModel,
)

import exsel
from exsel.errors import ExselError, LoadError
from exsel.training.saved_models import load_whole
from exsel.training.saved_models import read_config as read_source
from upgrading.upgraded_models import llama, llama_config, upgraded


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upgraded model, in several files."""
    folder = tmp_path_factory.mktemp("saved")
    llama().save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def in_index(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        def change(values: Any) -> None:
            values["weight_map"][next(iter(values["weight_map"]))] = name.format(folder=folder)

        edit(folder / "model.safetensors.index.json", change)

    return damage


def in_config(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda values: values.update(entries))


def in_base(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda values: values["exsel"]["base"].update(entries))


def linked(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next(folder.glob(name))
        path.symlink_to(path.rename(folder.parent / path.name))

    return damage


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


UNSAFE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (in_index("pytorch_model.bin"), "names 'pytorch_model.bin' as a file of weights"),
    "above": (in_index("../model.safetensors"), "out of the folder"),
    "above by backslashes": (in_index("..\\model.safetensors"), "out of the folder"),
    "absolute": (in_index("{folder}/../model.safetensors"), "out of the folder"),
    "a linked shard": (linked("model-00001*"), "is a link out of the folder"),
    "a linked configuration": (linked("config.json"), "is a link out of the folder"),
    "an index without a map": (written("model.safetensors.index.json", "{}"), "maps no weights"),
    "an index of another kind": (written("model.safetensors.index.json", "[]"), "is not a JSON object"),
    "a nested index": (written("model.safetensors.index.json", "[" * 100_000), "is not JSON"),
    "a nested configuration": (written("config.json", '{"a":' * 100_000), "is not JSON"),
    "weights elsewhere": (in_config(transformers_weights="adapter_model.bin"), "names 'adapter_model.bin'"),
    "an adapter": (written("adapter_config.json", "{}"), "holds an adapter beside its model"),
    "a kernel": (in_config(_attn_implementation="someone/kernel"), "someone/kernel.*from a hub"),
    "a kernel in the base": (in_base(attn_implementation={"": "a/b"}), "from a hub"),
    "a kernel deeper": (in_base(text_config={"_experts_implementation": "a/b"}), "from a hub"),
    "names": (in_config(architectures=[3]), "which are no names"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_and_damaged_files_are_refused_by_name(name: str, folder: Path) -> None:
    damage, message = UNSAFE[name]
    damage(folder)
    doors: list[Callable[[str], Any]] = [exsel.from_pretrained, load_whole, read_source]
    if "configuration" not in name and name != "names":  # those transformers reads before it asks us
        doors.append(AutoModelForCausalLM.from_pretrained)
    for load in doors:
        with pytest.raises(ExselError, match=message):
            load(str(folder))


@pytest.mark.parametrize(
    "architecture", ["pipeline", "Trainer", "PreTrainedModel", "LlamaConfig", "BertModel", "models"]
)
def test_architectures_name_models_of_their_configuration(architecture: str, tmp_path: Path) -> None:
    LlamaModel(llama_config()).save_pretrained(tmp_path)
    in_config(architectures=[architecture])(tmp_path)
    with pytest.raises(LoadError, match=f"saved by {architecture}, which is unknown here as a model of a llama"):
        exsel.from_pretrained(tmp_path)


def test_the_cache_of_a_hub_consists_of_links(saved: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    shutil.copytree(saved, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    exsel.from_pretrained(snapshot)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return damage


def in_upgrade(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda values: values["exsel"]["upgrades"][0].update(entries))


def without_position(folder: Path) -> None:
    edit(folder / "config.json", lambda values: values["exsel"]["upgrades"][0]["selective"].update(position=False))


PARTIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "a module less": (in_upgrade(modules=["layers.0.self_attn"]), r"no place for, .* such as model\.layers\.1.*exsel"),
    "selective null": (in_upgrade(selective=None), "no place for, .*exsel"),
    "exclusive null": (in_upgrade(exclusive=None), "no place for, .*exsel"),
    "no position": (without_position, "no place for, .*position_logit"),
    "a projection less": (weights(lambda all_: all_.pop("model.layers.0.self_attn.q_proj.weight")), "lacks 1 .*q_proj"),
    "one more": (weights(lambda all_: all_.update(more=torch.ones(1))), "no place for, 1 weights, such as more"),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_missing_and_leftover_weights_are_refused(name: str, tmp_path: Path) -> None:
    damage, message = PARTIAL[name]
    llama().save_pretrained(tmp_path)
    damage(tmp_path)
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained, load_whole):
        with pytest.raises(ExselError, match=message):
            load(str(tmp_path))
    if name != "one more":
        with pytest.raises(LoadError, match=r"no place for|lacks"):  # of what the two classes share
            AutoModel.from_pretrained(tmp_path)


def test_a_plain_model_is_loaded_whole(tmp_path: Path) -> None:
    LlamaModel(llama_config()).save_pretrained(tmp_path)
    weights(lambda all_: all_.pop("layers.0.self_attn.q_proj.weight"))(tmp_path)
    with pytest.raises(LoadError, match="it lacks 1 weights"):
        exsel.from_pretrained(tmp_path)


def test_another_head_of_a_plain_model_may_be_left(tmp_path: Path) -> None:
    """BERT's own checkpoints have one that the model they name has not."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForPreTraining(BertConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path)
    in_config(architectures=["BertForMaskedLM"])(tmp_path)
    assert type(exsel.from_pretrained(tmp_path)).__name__ == "BertForMaskedLM"


def test_another_head_is_new(tmp_path: Path) -> None:
    upgraded(LlamaModel(llama_config())).save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).score.weight.shape == (2, 32)


def test_a_plain_configuration_for_an_upgraded_folder(folder: Path) -> None:
    with pytest.raises(LoadError, match="leave config out"):
        exsel.from_pretrained(folder, config=LlamaConfig())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = LlamaModel(llama_config())
    model.save_pretrained(tmp_path / "base")
    model = exsel.from_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    load_whole(str(adapter), causal=False)
    weights(lambda all_: all_.update(more=torch.ones(1)))(adapter)
    with pytest.raises(ExselError, match="no place for, 1 weights, such as more"):
        load_whole(str(adapter), causal=False)
    weights(lambda all_: (all_.pop("more"), all_.pop(min(all_))))(adapter)
    with pytest.raises(ExselError, match="lacks 1 weights, such as base_model"):
        load_whole(str(adapter), causal=False)
