"""A folder with its own code loads where exsel cannot be imported, and computes the bits of exsel without C++."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BertModel, Qwen3Config, Qwen3ForCausalLM

import exsel
from exsel import cli, reference
from exsel.errors import ExselError
from exsel.files import seal
from exsel.kernels import cpp
from exsel.standalone import exporting, plain_operators
from models.small_models import SHAPES, VARIANTS, small_model
from standalone.load_without_exsel import IDS, computed
from upgrading.upgraded_models import LEARNED, bert_config, gpt2, llama, llama_config, plain_t5, upgraded


def qwen3() -> Any:
    """Norms on queries and keys, windows in every second layer, and two kinds of mechanisms."""
    torch.manual_seed(0)
    values = llama_config().to_dict() | {"layer_types": ["full_attention", "sliding_attention"]}
    values |= {"sliding_window": 4, "use_sliding_window": True, "model_type": "qwen3"}
    config = Qwen3Config(**values)
    first, last = (
        exsel.ExclusiveConfig(layers="first:1", strength=0.5),
        exsel.SelectiveConfig(layers="last:1", key=True),
    )
    return upgraded(Qwen3ForCausalLM(config), first, last)


MODELS: dict[str, Callable[[], Any]] = {
    "own": lambda: small_model(**VARIANTS["both"], **SHAPES["gqa"]),
    "linear": lambda: small_model(exclusive=LEARNED, selective=exsel.SelectiveConfig(token="linear", per_head=False)),
    "llama": llama,
    "gpt2": gpt2,
    "qwen3": qwen3,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("exported")
    for name, build in MODELS.items():
        build().save_pretrained(home / name)
        exsel.export_standalone(home / name)
    return home


@pytest.fixture(scope="module")
def results(exported: Path) -> dict[str, Tensor]:
    script, path = Path(__file__).with_name("load_without_exsel.py"), exported / "results.safetensors"
    folders = [str(exported / name) for name in MODELS]
    environment = os.environ | {
        "HF_HOME": str(exported / "cache"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": "",
    }
    subprocess.run([sys.executable, script, path, *folders], check=True, env=environment, capture_output=True)
    return load_file(path)


@pytest.mark.parametrize("name", MODELS)
def test_without_exsel_it_computes_the_same_bits(name: str, exported: Path, results: dict[str, Tensor]) -> None:
    found = {key.partition(".")[2]: value for key, value in results.items() if key.startswith(f"{name}.")}
    with cpp.without():
        wanted = computed(exsel.from_pretrained(exported / name, attn_implementation="sdpa"))
    gradients, own_gradients = wanted.pop("gradients"), found.pop("gradients")
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    # The gradient comes from autograd here, and from a formula there.
    torch.testing.assert_close(own_gradients, gradients, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # with its C++ passes and its own attention function it agrees up to rounding
        torch.testing.assert_close(
            found["logits"], exsel.from_pretrained(exported / name)(IDS).logits, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("name", ["own", "llama"])
@pytest.mark.parametrize("suffix", ["", "-again"])
def test_with_exsel_it_loads_as_before(
    name: str, suffix: str, exported: Path, results: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = exported / f"{name}{suffix}"  # also as saved by a program without exsel
    for load in (exsel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        model = load(folder)
        assert not type(model).__module__.startswith("transformers_modules")
        for key, value in MODELS[name]().state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
    trusted = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(trusted) is type(model)
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert "trust_remote_code" not in (tmp_path / "README.md").read_text()


def test_the_file_is_readable_and_the_card_says_how_to_load_it(exported: Path) -> None:
    for name in MODELS:
        text = (exported / name / "modeling_exsel.py").read_text()
        assert not re.search(r"^\s*(from|import) exsel", text, re.MULTILINE)
        assert text.count("\n") < 2000
        assert f"exsel {exsel.__version__} wrote this file" in text
        card = (exported / name / "README.md").read_text()
        assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
        assert f"exsel {exsel.__version__} has put in:" in card


def test_a_sealed_folder_stays_sealed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model(exclusive=True).save_pretrained(tmp_path / "model")
    seal(tmp_path, [tmp_path / "model"])
    assert cli.main(["export", str(tmp_path), "--standalone"]) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    exsel.from_pretrained(tmp_path / "model")
    with (tmp_path / "model" / "modeling_exsel.py").open("a") as file:
        file.write("# changed")
    with pytest.raises(ExselError, match="has changed since it was saved"):
        exsel.from_pretrained(tmp_path / "model")


def test_what_cannot_stand_alone_is_refused_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_t5().save_pretrained(tmp_path)
    with pytest.raises(ExselError, match="has no mechanisms: transformers loads it without exsel"):
        exsel.export_standalone(tmp_path)
    with pytest.raises(ExselError, match="holds no saved model"):
        exsel.export_standalone(tmp_path / "nowhere")
    llama().save_pretrained(tmp_path / "llama")
    before = (tmp_path / "llama" / "config.json").read_bytes()
    code_of = exporting._code_of
    monkeypatch.setattr(
        exporting,
        "_code_of",
        lambda *given: (code_of(*given)[0].replace("_exsel.update(", "_exsel.lost("), code_of(*given)[1]),
    )
    with pytest.raises(ExselError, match="cannot be tried on made-up tokens"):
        exsel.export_standalone(tmp_path / "llama")
    monkeypatch.setattr(
        exporting,
        "_code_of",
        lambda *given: (
            code_of(*given)[0].replace("1 + c", "2 + c").replace("return 1 + ", "return 2 + "),
            code_of(*given)[1],
        ),
    )
    with pytest.raises(ExselError, match="computes something else than exsel: nothing was changed"):
        exsel.export_standalone(tmp_path / "llama")
    assert (tmp_path / "llama" / "config.json").read_bytes() == before
    assert not (tmp_path / "llama" / "modeling_exsel.py").exists()


def test_other_kinds_of_models_stand_alone_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    upgraded(BertModel(bert_config())).save_pretrained(tmp_path / "bert")
    upgraded(plain_t5()).save_pretrained(tmp_path / "t5")
    for name in ("bert", "t5"):
        exsel.export_standalone(tmp_path / name)  # which checks the bits itself


def test_gguf_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "anything", "--gguf"]) == 2
    assert "llama.cpp has no graph with exclusive or selective attention" in capsys.readouterr().err


def test_the_plain_projection_has_the_references_gradient() -> None:
    y, v, strength = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 3, 8), (2, 2, 3, 8), (4,))
    )
    dz = torch.randn_like(y)
    found = torch.autograd.grad(plain_operators.exclude(y, v, strength=strength), (y, v, strength), dz)
    alpha = strength[:, None].expand(2, 4, 3)
    wanted = torch.autograd.grad(reference.exclude(y, v, alpha, plain_operators.EPS), (y, v, strength), dz)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
