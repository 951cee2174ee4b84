"""Upgraded models in two processes: each check of :mod:`upgrading.distributed_checks` as a test of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import distribute_tensor, init_device_mesh

import exsel
from exsel import ExclusiveConfig
from forked import run_ranks
from upgrading import distributed_checks
from upgrading.upgraded_models import llama_config

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong, by check; both processes start once for all of them."""
    folder = tmp_path_factory.mktemp("distributed")
    run_ranks("import sys\nfrom upgrading.distributed_checks import main\nmain(sys.argv[1])", str(folder))
    found: dict[str, str] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", list(distributed_checks.checks(Path())))
def test_two_processes(name: str, results: dict[str, str]) -> None:
    assert not results[name], results[name]


def test_a_model_that_is_distributed_already_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model = LlamaForCausalLM(llama_config())
        mesh = init_device_mesh("cpu", (1,))
        projection = model.model.layers[1].self_attn.q_proj
        projection.weight = torch.nn.Parameter(distribute_tensor(projection.weight, mesh))
        with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn is distributed already"):
            exsel.upgrade(model, selective=True)
        assert not any(name.endswith(".exsel") for name, _ in model.named_modules())
        exsel.upgrade(model, exclusive=ExclusiveConfig(strength=0.5))  # it has no parameters
    finally:
        torch.distributed.destroy_process_group()
