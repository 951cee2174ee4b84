"""Recipes for ``torchtitan.train --module exsel.engines.torchtitan --config NAME``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    ParamGroupConfig,
    default_adamw,
)
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.common import CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import get_attention_config, make_ffn_config, make_gqa_config
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.qwen3.model import Qwen3Model, Qwen3TransformerBlock
from torchtitan.models.qwen3.parallelize import parallelize_qwen3
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from exsel.config import ExclusiveArgument, SelectiveArgument
from exsel.engines.torchtitan.titan_attention import with_mechanisms
from exsel.model_sizes import SIZES
from exsel.models import ExselConfig

#: GPT-2's vocabulary, to a multiple of 128, which tensor parallelism divides evenly.
_VOCAB_SIZE = 50_304


def exclusive_selective_1_4b() -> Trainer.Config:
    """Both mechanisms in the 1.4b of the exclusive paper: FSDP2, tensor and context parallelism, 256 sequences a step.

    The number of GPUs is a multiple of four. Training is the paper's: Zhai, arXiv:2603.09078 (2026), Section 4. The
    decoder is torchtitan's (RMSNorm, SwiGLU of the same size, no norm after the embedding).
    """
    return _recipe("1.4b", exclusive=True, selective=True)


def exclusive_selective_tiny() -> Trainer.Config:
    """The same with a model of four layers, to try a machine, a data set or a division with."""
    return _recipe("tiny", exclusive=True, selective=True)


def baseline_1_4b() -> Trainer.Config:
    """The 1.4b without the mechanisms, to compare with."""
    return _recipe("1.4b")


def sized_model(size: str, vocab_size: int, attn_backend: str = "flex") -> ModelSpec:
    """A decoder of torchtitan with the width, depth and heads of :data:`exsel.models.SIZES`.

    Its parts are Qwen 3's without the norm on queries and keys: Llama's with a head size of its own. Weights start as
    those of :class:`exsel.ExselForCausalLM`.
    """
    config = ExselConfig(**SIZES[size], mlp="swiglu", vocab_size=vocab_size)
    width, depth, head_dim = config.hidden_size, config.num_hidden_layers, config.head_dim
    assert head_dim is not None
    assert config.intermediate_size is not None
    start = _normal(config.initializer_range)
    to_residual = _normal(config.initializer_range / math.sqrt(2 * depth))
    norm = RMSNorm.Config(normalized_shape=width, eps=config.norm_eps, param_init={"weight": nn.init.ones_})
    rope = CosSinRoPE.Config(dim=head_dim, max_seq_len=config.max_position_embeddings)
    layers = [
        Qwen3TransformerBlock.Config(
            attention_norm=norm,
            ffn_norm=norm,
            attention=make_gqa_config(
                dim=width,
                n_heads=config.num_attention_heads,
                n_kv_heads=config.num_key_value_heads,
                head_dim=head_dim,
                wqkv_param_init=start,
                wo_param_init=to_residual,
                inner_attention=get_attention_config(attn_backend),
                rope=rope,
                fuse_qkv=True,
            ),
            feed_forward=make_ffn_config(
                dim=width,
                hidden_dim=config.intermediate_size,
                w1_param_init=start,
                w2w3_param_init=start,
            ),
        )
        for _ in range(depth)
    ]
    for layer in layers:
        layer.feed_forward.w2.param_init = to_residual
    embedding = Embedding.Config(num_embeddings=vocab_size, embedding_dim=width, param_init={"weight": skip_param_init})
    model = Qwen3Model.Config(
        dim=width,
        vocab_size=vocab_size,
        enable_weight_tying=True,
        tok_embeddings=embedding,
        norm=replace(norm),  # torchtitan writes into a config how its module is divided, and this one otherwise
        lm_head=Linear.Config(in_features=width, out_features=vocab_size, param_init=start),
        layers=layers,
    )
    return ModelSpec(
        name="exsel",
        flavor=size,
        model=model,
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=Qwen3StateDictAdapter,
    )


def _normal(std: float) -> dict[str, Callable[..., Any]]:
    return {"weight": partial(nn.init.normal_, std=std)}


def _recipe(size: str, exclusive: ExclusiveArgument = None, selective: SelectiveArgument = None) -> Trainer.Config:
    spec = with_mechanisms(sized_model(size, _VOCAB_SIZE), exclusive=exclusive, selective=selective)
    optimizer = default_adamw(lr=4e-4)
    if exclusive or selective:
        optimizer.param_groups.insert(0, mechanism_group(1e-3))
    return Trainer.Config(
        model_spec=spec,
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=_VOCAB_SIZE)),
        optimizer=optimizer,
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2000, decay_type="cosine", min_lr_factor=0.1),
        training=TrainingConfig(local_batch_size=4, global_batch_size=256, seq_len=2048, steps=200_000),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4"),
        parallelism=ParallelismConfig(
            tensor_parallel_degree=2, context_parallel_degree=2, context_parallel_load_balancer="ptrr"
        ),
        checkpoint=CheckpointManager.Config(enable=True, interval=1000, last_save_in_hf=True),
    )


def mechanism_group(learning_rate: float) -> ParamGroupConfig:
    """The group of the per-head parameters, before the group of all others: no weight decay, a rate of their own."""
    return ParamGroupConfig(
        pattern=r"\.(exclusive\.|temperatures\.\w+\.(weight|position_logit))",
        optimizer_name="AdamW",
        optimizer_kwargs={"lr": learning_rate, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0},
    )
