"""Training an adapter: TRL's trainer, gradient checkpointing, lower precision, quantised weights, compilation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft_models import VOCABULARY, llama, lora, tokens, trained
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

import exsel
from exsel.peft import SelectiveAdapterConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

LEARNED = exsel.ExclusiveConfig(strength="learned")


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trls_trainer_takes_it_as_peft_config(tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    words = {f"w{index}": index for index in range(VOCABULARY - 2)} | {"<pad>": VOCABULARY - 2, "<eos>": VOCABULARY - 1}
    word_level = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    llama().save_pretrained(tmp_path / "base")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        args=SFTConfig(
            tmp_path / "run",
            max_steps=2,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"text": ["w1 w2 w3 w4 w5 w6"] * 8}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=word_level, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
        ),
        peft_config=SelectiveAdapterConfig(exclusive=LEARNED, lora=lora(), task_type="CAUSAL_LM"),
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        is_new = ".exsel." in name or "lora_" in name
        assert torch.equal(parameter, before[name]) != is_new, name
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert torch.equal(loaded(tokens()).logits, trainer.model.eval()(tokens()).logits)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        base = llama()
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        config = SelectiveAdapterConfig(exclusive=LEARNED, lora=lora(), task_type="CAUSAL_LM")
        model = trained(get_peft_model(base, config)).train()
        model(tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        assert gradients[0][name].any(), name
        torch.testing.assert_close(gradients[1][name], gradients[0][name])


@pytest.mark.parametrize("token", ["shared", "mlp"])
@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_lower_precision_keeps_the_adapter_in_float32(token: str, precision: str) -> None:
    config = SelectiveAdapterConfig(token=token, exclusive=LEARNED)
    model = trained(get_peft_model(llama(torch.bfloat16 if precision == "bfloat16" else torch.float32), config)).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model(tokens(), labels=tokens())
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    exact = trained(get_peft_model(llama(), config))(tokens()).logits
    assert (output.logits - exact).abs().max() < 0.03 * exact.abs().max()
    for name, parameter in model.named_parameters():
        if ".exsel." in name:
            assert parameter.dtype == torch.float32
            assert parameter.grad.any(), name
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert model.merge_and_unload()(tokens()).logits.dtype == dtype


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_stay_frozen_under_it(bits: int, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)

    def base() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=quantization, device_map="cpu"
        )

    model = prepare_model_for_kbit_training(base())
    plain = model(tokens()).logits
    upgraded = exsel.upgrade(model, exclusive=True, selective=True)
    assert not torch.allclose(upgraded(tokens()).logits, plain, atol=1e-3)
    assert torch.equal(exsel.downgrade(upgraded)(tokens()).logits, plain)

    model = trained(get_peft_model(model, SelectiveAdapterConfig(exclusive=LEARNED, lora=lora()))).train()
    model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        is_new = ".exsel." in name or "lora_" in name
        assert parameter.requires_grad == is_new, name
        assert not is_new or parameter.grad.any(), name
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(prepare_model_for_kbit_training(base()), tmp_path / "adapter")
    torch.testing.assert_close(loaded(tokens()).logits, model.eval()(tokens()).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.unload()(tokens()).logits, plain)


def test_it_compiles_without_a_break() -> None:
    model = trained(get_peft_model(llama(), SelectiveAdapterConfig(exclusive=True, lora=lora())))
    compiled = torch.compile(model.base_model.model.model, backend="eager", fullgraph=True)
    expected = model.base_model.model.model(tokens(), use_cache=False).last_hidden_state
    torch.testing.assert_close(compiled(tokens(), use_cache=False).last_hidden_state, expected)
