"""torchtitan trains both mechanisms in several processes as ``ExselForCausalLM`` trains them in one."""

# ruff: noqa: E402 (torchtitan may be absent)
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from exsel import ExselForCausalLM
from exsel.errors import ExselError, LoadError, UpgradeError
from exsel.files import read_json

pytestmark = pytest.mark.slow
pytest.importorskip("torchtitan", reason="it has an environment of its own, which .ci/run makes")

from engines import titan_on_cpu  # noqa: F401

# isort: split
from torchtitan.models.deepseek_v3 import model_registry as deepseek
from torchtitan.models.llama3 import model_registry as llama3

from engines.titan_cases import CASES, STEPS, WEIGHT_DECAY, Case, batches
from engines.titan_runs import spec
from exsel.engines.torchtitan import exsel_config, save_folder, with_mechanisms
from exsel.engines.torchtitan.config_registry import (
    baseline_1_4b,
    exclusive_selective_1_4b,
    exclusive_selective_tiny,
)

#: Runs by their number of processes; the eight are divided by two in each way.
RUNS = {
    1: ("llama-one",),
    2: ("llama-fsdp", "llama-tp", "llama-cp", "qwen-tp", "linear-tp"),
    8: ("llama-all",),
}
NAMES = [name for names in RUNS.values() for name in names]


def new_model(case: Case) -> ExselForCausalLM:
    """The case's model with every parameter of the mechanisms away from where it starts."""
    torch.manual_seed(0)
    model = ExselForCausalLM(exsel_config(spec(case).model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_logit"):
                parameter.copy_(torch.randn_like(parameter) - 1)
            elif "temperatures" in name or "strength_logit" in name or "_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


class Trained:
    """What five steps of plain PyTorch make of a model: losses, the first step's gradients, the weights."""

    def __init__(self, case: Case, model: ExselForCausalLM, steps: int = STEPS) -> None:
        self.start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        own = [name for name, _ in model.named_parameters() if ".exclusive." in name or ".temperatures." in name]
        own = [name for name in own if "feature_proj" not in name]
        mechanisms = [parameter for name, parameter in model.named_parameters() if name in own]
        others = [parameter for name, parameter in model.named_parameters() if name not in own]
        groups = [
            {"params": mechanisms, "lr": case.mechanism_rate, "weight_decay": 0.0},
            {"params": others, "lr": case.rate, "weight_decay": WEIGHT_DECAY},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
        for ids, labels, positions in [*batches(model.config.vocab_size)][:steps]:
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            self.losses.append(loss.item())
            if not self.gradients:
                self.gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            optimizer.step()
        self.weights = model.state_dict()


def apart(found: Tensor, expected: Tensor) -> float:
    """How far two tensors are apart, as part of the second's size."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of ``titan_runs.py``, in one process and in several, from folders of ``ExselForCausalLM``."""
    home = tmp_path_factory.mktemp("titan")
    for name, case in CASES.items():
        new_model(case).save_pretrained(home / f"{name}-start")
    for processes, names in RUNS.items():
        launch(processes, Path(__file__).with_name("titan_runs.py"), home, *names)
    return home


def launch(processes: int, *command: str | Path, **environment: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    outcome = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment)
    assert outcome.returncode == 0, outcome.stderr


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    return {name: Trained(case, new_model(case)) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def budgets(trained: dict[str, Trained]) -> dict[str, float]:
    """By case, twice the largest error of a float32 gradient, by plain PyTorch in one process."""
    exact = {name: Trained(case, new_model(case).double(), steps=1).gradients for name, case in CASES.items()}
    return {
        name: 2 * max(apart(trained[name].gradients[parameter], gradient) for parameter, gradient in gradients.items())
        for name, gradients in exact.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_are_those_of_exsel_in_one_process(
    name: str, home: Path, trained: dict[str, Trained], budgets: dict[str, float]
) -> None:
    kind = name.partition("-")[0]
    expected, budget = trained[kind], budgets[kind]
    assert budget < 1e-3
    assert read_json(home / name / "losses.json") == pytest.approx(expected.losses, rel=1e-5)
    gradients = load_file(home / name / "gradients.safetensors")
    assert gradients.keys() == expected.gradients.keys()
    for parameter, gradient in expected.gradients.items():
        assert apart(gradients[parameter], gradient) <= budget, parameter


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_any_division_becomes_a_folder(
    name: str, home: Path, trained: dict[str, Trained], tmp_path: Path
) -> None:
    """torchtitan's own format after ``fsdp``, Hugging Face's after the others; the runs began from folders."""
    kind = name.partition("-")[0]
    save_folder(spec(CASES[kind]), home / name / "checkpoint" / f"step-{STEPS}", tmp_path)
    weights = ExselForCausalLM.from_pretrained(tmp_path).state_dict()
    start, expected = trained[kind].start, trained[kind].weights
    assert weights.keys() == expected.keys()
    for parameter, weight in expected.items():
        if weight.is_floating_point():
            # Adam divides by the size of gradients: where they are tiny, rounding turns a step.
            assert apart(weights[parameter] - start[parameter], weight - start[parameter]) < 1e-2, parameter
        else:
            assert torch.equal(weights[parameter], weight)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_cannot_be_loaded_or_put_in_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UpgradeError, match="layer 0 of deepseek_v3 has Attention, and not torchtitan's GQAttention"):
        with_mechanisms(deepseek("debugmodel"), exclusive=True)
    with pytest.raises(UpgradeError, match="token='frequency' needs each token's frequency"):
        with_mechanisms(llama3("debugmodel"), selective={"token": "frequency"})
    other = replace(CASES["llama"], mechanisms={"exclusive": 0.5})
    adapter = spec(other).state_dict_adapter(spec(other).model, None)
    with pytest.raises(LoadError, match=r"llama-start has exclusive=.*'learned'.*and the recipe .*0\.5"):
        adapter.get_hf_storage_reader(str(home / "llama-start"))
    with pytest.raises(ExselError, match="is no checkpoint of this model"):
        save_folder(spec(CASES["llama"]), tmp_path, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_recipe_trains_by_its_command(tmp_path: Path) -> None:
    """Two steps of text, the model divided by two; then its checkpoint is an ``ExselForCausalLM``."""
    alphabet = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    for folder in ("tokenizer", "text"):
        (tmp_path / folder).mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "text" / "text.txt").write_text(Path(__file__).read_text())
    launch(
        2,
        *("-m", "engines.titan_on_cpu", "--module", "exsel.engines.torchtitan", "--config", "exclusive_selective_tiny"),
        *("--hf_assets_path", tmp_path / "tokenizer", "--dump_folder", tmp_path / "run"),
        *("--dataloader.dataset", "c4_test", "--dataloader.dataset_path", tmp_path / "text"),
        *("--parallelism.context_parallel_degree", "1", "--parallelism.spmd_backend", "partial_dtensor"),
        *("--training.steps", "2", "--training.seq_len", "128", "--training.disable_cuda_graphs"),
        *("--training.local_batch_size", "1", "--training.global_batch_size", "1"),
        HF_HOME=str(tmp_path / "cache"),
    )
    model_spec = exclusive_selective_tiny().model_spec
    save_folder(model_spec, tmp_path / "run" / "checkpoint" / "step-2", tmp_path / "folder")
    trained = ExselForCausalLM.from_pretrained(tmp_path / "folder")
    start = dict(ExselForCausalLM(trained.config).named_parameters())
    for name, parameter in trained.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, start[name]), name


def test_the_recipe_is_the_size_of_the_paper() -> None:
    both, baseline = exclusive_selective_1_4b(), baseline_1_4b()
    with torch.device("meta"):
        model = both.model_spec.model.build()
        expected = ExselForCausalLM(exsel_config(both.model_spec.model))
        plain = baseline.model_spec.model.build()
    model.verify_module_protocol()
    count, expected_count, plain_count = (
        sum(parameter.numel() for parameter in network.parameters()) for network in (model, expected, plain)
    )
    assert count == expected_count
    assert 1.4e9 < plain_count < count < 1.6e9
    adapter = both.model_spec.state_dict_adapter(both.model_spec.model, None)
    names = adapter.to_hf(model.state_dict()).keys()
    assert {*names, "lm_head.weight"} == {name for name in expected.state_dict() if "fixed_strength" not in name}
