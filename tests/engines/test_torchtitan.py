"""torchtitan trains both mechanisms in several processes as ``ExselForCausalLM`` trains them in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from exsel import ExselForCausalLM
from exsel.errors import ExselError
from exsel.files import read_json

pytestmark = pytest.mark.slow
pytest.importorskip("torchtitan", reason="it has an environment of its own, which .ci/run makes")

from engines import titan_on_cpu  # noqa: F401
from engines.titan_cases import CASES, STEPS, WEIGHT_DECAY, Case, batches
from engines.titan_runs import spec
from exsel.engines.torchtitan import config_registry, exsel_config, save_folder, with_mechanisms
from torchtitan.models.deepseek_v3 import model_registry as deepseek
from torchtitan.models.llama3 import model_registry as llama3

RUNS = ("llama-fsdp", "llama-tp", "llama-cp", "qwen-tp")
#: float32, five steps: sums of 2^19 terms at most in other orders, and AdamW, whose step does not shrink with a gradient.
ROUNDING = 2e-5


def new_model(case: Case) -> ExselForCausalLM:
    """The case's model with every parameter of the mechanisms away from where it starts."""
    config = exsel_config(spec(case).model)
    torch.manual_seed(0)
    model = ExselForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_logit"):
                parameter.copy_(torch.randn_like(parameter) - 1)
            elif "temperatures" in name or "strength_logit" in name or "_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


class Trained:
    """What five steps of plain PyTorch make of a model: losses, the first gradients, the weights."""

    def __init__(self, case: Case, model: ExselForCausalLM) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        mechanisms = {
            name: parameter
            for name, parameter in model.named_parameters()
            if "self_attn.exclusive" in name or ("temperatures" in name and "feature_proj" not in name)
        }
        others = [parameter for name, parameter in model.named_parameters() if name not in mechanisms]
        optimizer = torch.optim.AdamW(
            [
                {"params": list(mechanisms.values()), "lr": case.mechanism_rate, "weight_decay": 0.0},
                {"params": others, "lr": case.rate, "weight_decay": WEIGHT_DECAY},
            ],
            betas=(0.9, 0.95),
            eps=1e-8,
        )
        for ids, labels, positions in batches(model.config.vocab_size):
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case: the folder that torchtitan starts from, and what plain PyTorch makes of it."""
    home = tmp_path_factory.mktemp("titan")
    trained: dict[str, Any] = {"home": home}
    for name, case in CASES.items():
        model = new_model(case)
        model.save_pretrained(home / f"{name}-start")
        trained[name] = Trained(case, model)
    return trained


@pytest.fixture(scope="module")
def home(expected: dict[str, Any]) -> Path:
    """The runs of ``titan_runs.py``: in one process, and in two."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for processes, names in ((1, ("llama-one",)), (2, RUNS)):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        script = Path(__file__).with_name("titan_runs.py")
        outcome = subprocess.run(
            [*command, script, expected["home"], *names], capture_output=True, text=True, env=environment
        )
        assert outcome.returncode == 0, outcome.stderr
    folder: Path = expected["home"]
    return folder


@pytest.mark.parametrize("name", ["llama-one", *RUNS])
def test_five_steps_are_those_of_exsel_in_one_process(name: str, home: Path, expected: dict[str, Any]) -> None:
    exact = expected[name.partition("-")[0]]
    assert read_json(home / name / "losses.json") == pytest.approx(exact.losses, rel=ROUNDING)
    gradients = load_file(home / name / "gradients.safetensors")
    assert gradients.keys() == exact.gradients.keys()
    for parameter, gradient in exact.gradients.items():
        error = (gradients[parameter] - gradient).abs().max() / gradient.abs().max()
        assert error <= ROUNDING, f"{parameter}: {error:.1e}"


@pytest.mark.parametrize("name", ["llama-one", *RUNS])
def test_a_checkpoint_of_any_division_becomes_a_folder(
    name: str, home: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """The runs began from a folder, which is the other direction."""
    kind = name.partition("-")[0]
    save_folder(spec(CASES[kind]), home / name / "checkpoint" / f"step-{STEPS}", tmp_path)
    weights = ExselForCausalLM.from_pretrained(tmp_path).state_dict()
    assert weights.keys() == expected[kind].weights.keys()
    for parameter, weight in expected[kind].weights.items():
        # Where Adam's second average is tiny the rounding of a gradient decides the direction of a step.
        torch.testing.assert_close(weights[parameter], weight, rtol=0, atol=1e-3, msg=parameter)
