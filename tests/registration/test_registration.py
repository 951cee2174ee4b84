"""Programs with and without exsel, in both orders of import, on the folder of an upgraded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import exsel
from upgrading.upgraded_models import llama, llama_config


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an upgraded model."""
    folder = tmp_path_factory.mktemp("upgraded")
    llama().save_pretrained(folder)
    return folder


def test_a_program_without_exsel_cannot_load_the_folder(folder: Path) -> None:
    code = """
import json, sys
import transformers

folder = sys.argv[1]
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
    "GPT2Config", "GPT2LMHeadModel", "BertModel", "CLIPTextConfig", "LlavaConfig",
):
    attempt(name, getattr(transformers, name).from_pretrained, folder)
llama = transformers.LlamaForCausalLM
attempt("options", llama.from_pretrained, folder, dtype="float32", num_labels=3, id2label={0: "a"})
attempt("json", transformers.LlamaConfig.from_json_file, folder + "/config.json")
attempt("pipeline", transformers.pipeline, "text-generation", model=folder)
assert "exsel" not in sys.modules
print(json.dumps(said))
"""
    said = json.loads(run_python(code, str(folder)))
    assert len(said) == 16
    for name, text in said.items():
        assert "has model type `exsel_upgraded`" in text or "import exsel; exsel.from_pretrained(folder)" in text, (
            f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "imports",
    [
        "import exsel; import transformers",
        "import transformers; import exsel",
    ],
)
def test_orders_of_import(imports: str, folder: Path) -> None:
    out = run_python(
        f"{imports}\n"
        "import sys\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(type(config).__name__, type(model).__name__, sum(name.endswith('.exsel') for name, _ in "
        "model.named_modules()))",
        str(folder),
    )
    assert out.split() == ["LlamaConfig", "LlamaForCausalLM", "2"]


def test_the_hook_is_transparent() -> None:
    out = run_python(
        "import sys, importlib\n"
        "before = list(sys.meta_path)\n"
        "import exsel, exsel.registration\n"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules\n"
        "exsel.registration.register()\n"
        "assert [finder for finder in sys.meta_path if finder not in before] == sys.meta_path[:1]\n"
        "from transformers.models.auto import configuration_auto as module\n"
        "assert module.__spec__.loader.name == module.__name__ and module.__file__.endswith('configuration_auto.py')\n"
        "first = module.CONFIG_MAPPING\n"
        "importlib.reload(module)\n"
        "assert module.CONFIG_MAPPING is not first\n"
        "print(all('exsel_upgraded' in mapping for mapping in (first, module.CONFIG_MAPPING)))"
    )
    assert out.split() == ["True"]


def test_a_plain_folder_loads_in_a_program_with_exsel(tmp_path: Path) -> None:
    from transformers import AutoModel, LlamaModel

    LlamaModel(llama_config()).save_pretrained(tmp_path)
    for load in (AutoModel.from_pretrained, LlamaModel.from_pretrained, exsel.from_pretrained):
        assert type(load(tmp_path)) is LlamaModel
