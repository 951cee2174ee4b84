"""TRL's trainers on an upgraded model and on a LoRA adapter of one; the reference is the upgraded one at its start."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn

import exsel
from exsel.nn import Temperature
from exsel.upgrading import Upgraded
from upgrading.upgraded_models import IDS, character_tokenizer, llama, logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed"),
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
]

PROMPTS = ["abc", "cdc", "aab", "xyz"] * 4
OPTIONS: dict[str, Any] = {
    "max_steps": 3,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(completion.count("a")) for completion in completions]


def trainer(kind: str, folder: Path, is_adapter: bool) -> Any:
    import trl

    tokenizer = character_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    data = {
        "sft": {"text": [prompt * 2 for prompt in PROMPTS]},
        "dpo": {"prompt": PROMPTS, "chosen": PROMPTS, "rejected": PROMPTS[::-1]},
        "grpo": {"prompt": PROMPTS},
    }[kind]
    own: dict[str, Any] = {"beta": 0.1} if kind != "sft" else {}
    if kind == "grpo":
        own |= {"num_generations": 4, "max_completion_length": 6}
    name = kind.upper()
    return getattr(trl, f"{name}Trainer")(
        model=exsel.from_pretrained(folder),
        args=getattr(trl, f"{name}Config")(folder.parent / "run", **OPTIONS, **own),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if is_adapter else None,
        **({"reward_funcs": reward} if kind == "grpo" else {}),
    )


def numbers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("is_adapter", [False, True])
@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_it_trains_and_its_reference_is_the_upgraded_model(kind: str, is_adapter: bool, tmp_path: Path) -> None:
    folder = tmp_path / "upgraded"
    llama().save_pretrained(folder)
    start = logits(exsel.from_pretrained(folder))
    running = trainer(kind, folder, is_adapter)
    before = numbers(running.model)
    running.train()
    assert running.state.global_step == OPTIONS["max_steps"]
    moved = {name for name, value in numbers(running.model).items() if not torch.equal(value, before[name])}
    is_new = "lora_" if is_adapter else "temperatures"
    assert any(is_new in name for name in moved)
    if is_adapter:
        assert all("lora_" in name for name in moved)
    if kind == "sft":
        return
    reference = running.ref_model
    if reference is None:  # the model itself without its adapter
        assert is_adapter
        with running.model.disable_adapter():
            found = logits(running.model.eval())
    else:
        assert any(isinstance(module, Upgraded) for module in reference.modules())
        assert any(isinstance(module, Temperature) for module in reference.modules())
        found = logits(reference.eval())
    torch.testing.assert_close(found, start, rtol=0, atol=1e-5)
    plain = exsel.downgrade(exsel.from_pretrained(folder))
    assert (logits(plain) - start).abs().max() > 1e-2  # so that the base itself would have been seen
    assert IDS.shape == start.shape[:2]
