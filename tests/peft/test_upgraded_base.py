"""PEFT's own adapters around an upgraded model: trained, merged, taken away, saved and found again, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import exsel
from upgrading.upgraded_models import llama_config, logits, upgraded

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def build(name: str = "") -> Any:
    torch.manual_seed(0)
    return upgraded(LlamaForCausalLM(llama_config(name_or_path=name)))


@pytest.mark.parametrize("name", ["", "some/model"])
def test_a_base_in_memory_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(build(name), peft.LoraConfig(**LORA))
    with pytest.raises(exsel.UpgradeError, match="belongs to a model that was upgraded in memory"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    own = build(name)
    own.add_adapter(peft.LoraConfig(**LORA))
    with pytest.raises(exsel.UpgradeError, match="belongs to a model that was upgraded in memory"):
        own.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_base_in_a_folder_is_found_again(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        exsel.from_pretrained(tmp_path / "base"), peft.LoraConfig(task_type="CAUSAL_LM", **LORA)
    )
    expected = logits(model.eval())
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), expected)


def test_merged_and_unloaded(tmp_path: Path) -> None:
    plain = logits(build())
    model = peft.get_peft_model(build(), peft.LoraConfig(**LORA))
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())
    changed = logits(model)
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(logits(model.unload()), plain)
    model = peft.get_peft_model(build(), peft.LoraConfig(**LORA))
    changed = logits(model)
    merged = model.merge_and_unload()
    assert type(merged) is LlamaForCausalLM
    torch.testing.assert_close(logits(merged), changed, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(exsel.from_pretrained(tmp_path)), logits(merged))
    exsel.downgrade(merged)
    assert not any("exsel" in name for name in merged.state_dict())
