"""Small upgraded transformers models, every new parameter away from where it starts."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import exsel
from exsel import ExclusiveConfig, SelectiveConfig
from upgrading.layer_checks import randomise

LEARNED = ExclusiveConfig(strength="learned")
IDS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))


def llama_config(**options: Any) -> LlamaConfig:
    sizes = {
        "vocab_size": 62,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**sizes, **options})


def gpt2_config() -> GPT2Config:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(vocab_size=62, n_positions=64, n_embd=32, n_layer=2, n_head=4, **dropout)


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=62, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
    )


def upgraded(
    model: nn.Module,
    exclusive: ExclusiveConfig | bool | None = LEARNED,
    selective: SelectiveConfig | bool | None = True,
) -> Any:
    exsel.upgrade(model, exclusive=exclusive, selective=selective)
    randomise(model)
    return model.eval()


def llama(exclusive: Any = LEARNED, selective: Any = True, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return upgraded(LlamaForCausalLM(llama_config(**options)), exclusive, selective)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return upgraded(GPT2LMHeadModel(gpt2_config()))


def plain_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(vocab_size=62, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return T5ForConditionalGeneration(config).eval()


def plain_llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    config = LlavaConfig(vision_config=vision, text_config=llama_config(), image_token_index=60, image_seq_length=4)
    return LlavaForConditionalGeneration(config).eval()


@torch.no_grad()
def logits(model: Any, **inputs: Tensor) -> Tensor:
    output: Tensor = model(**(inputs or {"input_ids": IDS})).logits
    return output


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<eos>": 0} | {chr(ord("a") + index): index + 1 for index in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
