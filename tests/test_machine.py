from __future__ import annotations

import json
import platform
import shutil

import pytest
import torch

from exsel.errors import ExselError
from exsel.machine import (
    can_compile,
    describe_machine,
    git_revision,
    resolve_device,
)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for device in ("cuda", "mps"):
        with pytest.raises(ExselError, match=rf"--device {device}: .* finds no such device here; use --device cpu"):
            resolve_device(device)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"


@pytest.mark.parametrize("device", ["gpu", "", "cpu:0"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(ExselError, match=r"choose auto, cpu, cuda or mps$"):
        resolve_device(device)


def test_one_of_several_gpus_is_chosen_outside() -> None:
    with pytest.raises(ExselError, match="CUDA_VISIBLE_DEVICES"):
        resolve_device("cuda:1")


def test_the_machine_is_described_in_json() -> None:
    machine = describe_machine("cpu")
    assert json.loads(json.dumps(machine)) == machine
    assert machine["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine["python"] == platform.python_version()
    assert machine["device"] == "cpu"
    assert machine["processor"]


def test_a_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile()
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/it" if name == "clang++" else None)
    assert can_compile()


def test_no_git_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None
