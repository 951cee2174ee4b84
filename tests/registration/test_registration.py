"""Programs with and without exsel, in both orders of import, on the folder of an upgraded model, and on a pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import exsel
from forked import run_forked
from models.small_models import small_model
from upgrading.architectures import IDS, outputs, upgraded
from upgrading.upgraded_models import character_tokenizer, llama, llama_config

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an upgraded model and its tokenizer."""
    folder = tmp_path_factory.mktemp("upgraded")
    llama().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of exsel's own model."""
    folder = tmp_path_factory.mktemp("own")
    small_model(exclusive=exsel.ExclusiveConfig()).save_pretrained(folder)
    return folder


def test_a_program_without_exsel_loads_the_tokenizer_and_no_model(folder: Path, own_folder: Path) -> None:
    code = """
import json, sys
import transformers

folder, own_folder = sys.argv[1:]
said = {}


def attempt(name, load, *args, **kwargs):
    try:
        load(*args, **kwargs)
        said[name] = "loaded"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"


for name in (
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification",
    "LlamaConfig", "LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification",
    "GPT2Config", "GPT2LMHeadModel", "BertModel", "CLIPTextConfig", "LlavaForConditionalGeneration", "DetrModel",
):
    attempt(name, getattr(transformers, name).from_pretrained, folder)
llama = transformers.LlamaForCausalLM
attempt("options", llama.from_pretrained, folder, dtype="float32", num_labels=3, id2label={0: "a"})
own_config = transformers.LlavaConfig.from_pretrained(folder)
for name, implementation in (("as it is", None), ("eager", "eager")):
    options = {"config": own_config, "attn_implementation": implementation}
    attempt(name, transformers.LlavaForConditionalGeneration.from_pretrained, folder, **options)
attempt("built", transformers.LlavaForConditionalGeneration, own_config)
attempt("json", transformers.LlamaConfig.from_json_file, folder + "/config.json")
attempt("pipeline", transformers.pipeline, "text-generation", model=folder)
attempt("own", llama.from_pretrained, own_folder)
tokenizers = [transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast]
ids = [load.from_pretrained(folder)("ab")["input_ids"] for load in tokenizers]
assert "exsel" not in sys.modules
print(json.dumps([said, ids]))
"""
    said, ids = json.loads(run_forked(code, str(folder), str(own_folder)))
    assert len(said) == 21
    for name, text in said.items():
        assert "import exsel" in text, f"{name}: {text}"
    assert ids == [character_tokenizer()("ab")["input_ids"]] * 2


_LOAD_BOTH = """
from transformers import AutoConfig, AutoModelForCausalLM
said = [type(AutoConfig.from_pretrained(sys.argv[1])).__name__, type(AutoConfig.for_model("exsel")).__name__]
plain = AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=1, vocab_size=8)
said.append(AutoModelForCausalLM.from_config(plain, attn_implementation="exsel").config._attn_implementation)
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    said += [type(model).__name__, str(sum(name.endswith(".exsel") for name, _ in model.named_modules()))]
print(*said)
"""
_LOADED = ["LlamaConfig", "ExselConfig", "exsel", "LlamaForCausalLM", "2", "ExselForCausalLM", "0"]


def test_exsel_before_transformers(folder: Path, own_folder: Path) -> None:
    """The finder of modules changes nothing that others see, and goes when it has done its work."""
    code = """
import sys
before = list(sys.meta_path)
import exsel, exsel.registration
assert 'transformers' not in sys.modules and 'torch' not in sys.modules
exsel.registration.register()
assert [finder for finder in sys.meta_path if finder not in before] == sys.meta_path[:1]
from transformers.models.auto import configuration_auto as module
assert module.__spec__.loader.name == module.__name__ and module.__file__.endswith('configuration_auto.py')
import transformers.modeling_utils
assert not any(type(finder).__module__.startswith('exsel') for finder in sys.meta_path)
"""
    command = [sys.executable, "-c", code + _LOAD_BOTH, str(folder), str(own_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == _LOADED


def test_transformers_is_as_it_was_when_nothing_is_upgraded_any_more() -> None:
    code = """
import pickle, exsel
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

methods = "__init__", "save_pretrained"
before = [vars(PreTrainedModel)[name] for name in methods]
config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)


def given():
    return [vars(PreTrainedModel)[name] for name in methods] == before


one, other = (exsel.upgrade(LlamaForCausalLM(config), exclusive=True) for _ in range(2))
said = [given()]
exsel.downgrade(one)
said.append(given())
kept = pickle.dumps(other.config)
exsel.downgrade(other)
said.append(given())
described = pickle.loads(kept)
said.append(given())
try:
    LlamaForCausalLM(described)
except exsel.LoadError:
    said.append("refused")
del described
exsel.downgrade(exsel.upgrade(one, exclusive=True))
said.append(given())
print(*said)
"""
    assert run_forked(code).split() == ["False", "False", "True", "False", "refused", "True"]


def test_transformers_before_exsel(folder: Path, own_folder: Path) -> None:
    code = "import sys\nassert 'transformers.models.auto.configuration_auto' in sys.modules\nimport exsel\n"
    assert run_forked(code + _LOAD_BOTH, str(folder), str(own_folder)).split() == _LOADED


def test_pickled_for_another_process(tmp_path: Path) -> None:
    """Which has not imported exsel: unpickling does. And what exsel registers with transformers is there then."""
    model = upgraded("llama", layers=1)
    torch.save(model, tmp_path / "model.pt")
    torch.save(outputs(model, "llama"), tmp_path / "expected.pt")
    program = """
import sys, torch
assert "exsel" not in sys.modules
folder, ids = sys.argv[1], torch.tensor(eval(sys.argv[2]))
model = torch.load(f"{folder}/model.pt", weights_only=False)
with torch.no_grad():
    assert torch.equal(model(input_ids=ids).logits, torch.load(f"{folder}/expected.pt"))
"""
    run_forked(program, str(tmp_path), str(IDS.tolist()))


def test_a_plain_folder_loads_in_a_program_with_exsel(tmp_path: Path) -> None:
    from transformers import AutoModel, LlamaModel

    LlamaModel(llama_config()).save_pretrained(tmp_path)
    for load in (AutoModel.from_pretrained, LlamaModel.from_pretrained, exsel.from_pretrained):
        assert type(load(tmp_path)) is LlamaModel
