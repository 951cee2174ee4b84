"""The package as a whole: what importing it costs and needs, and that the README's example runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import get_overloads

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import exsel
from exsel.data import load_tokenizer
from readme import python_examples

pytestmark = pytest.mark.first


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_readme_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A small model stands where `exsel pull` keeps the one that the examples name, so that nothing is downloaded.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "exsel" / "models" / "smollm2"
    tokenizer = load_tokenizer("bytes")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    examples = python_examples()
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    for code in examples:  # none knows the names of another
        exec(code, {})


def test_operators_and_modules_need_torch_alone() -> None:
    done = run_python(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('transformers', 'datasets', 'accelerate', 'matplotlib', 'jinja2', 'rich',\n"
        "                                  'psutil', 'safetensors', 'huggingface_hub'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import exsel, torch\n"
        "layer = exsel.nn.SelfAttention(32, 4, selective=exsel.SelectiveConfig())\n"
        "assert layer(torch.randn(1, 5, 32)).shape == (1, 5, 32)\n"
        "try:\n"
        "    exsel.ExselForCausalLM\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "transformers is not installed: pip install 'exsel[models]'"


def test_importing_is_lazy() -> None:
    done = run_python("import sys, exsel; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]


def test_everything_public_is_there() -> None:
    for name in exsel.__all__:
        assert getattr(exsel, name) is not None
    assert [name for name in dir(exsel) if not name.startswith("__")] == sorted({*exsel.__all__, "peft"})
    assert exsel.peft is not None


@pytest.mark.parametrize("name", ["nn", "models", "peft", "data", "diagnostics", "evaluation", "report", "upgrading"])
def test_a_package_shows_what_is_public_and_nothing_that_it_imports(name: str) -> None:
    package = importlib.import_module(f"exsel.{name}")
    others = set(dir(package)) - set(package.__all__)
    for other in others - {other for other in others if other.startswith("_")}:
        assert f"exsel.{name}.{other}" in sys.modules, f"{other} is neither public nor a module of exsel.{name}"


def test_what_from_pretrained_returns_is_known_to_type_checkers() -> None:
    returned = {overload.__annotations__["return"] for overload in get_overloads(exsel.from_pretrained)}
    assert returned == {"LoadedModel", "tuple[LoadedModel, dict[str, Any]]"}


def test_version_is_that_of_the_package_metadata() -> None:
    assert importlib.metadata.version("exsel") == exsel.__version__
