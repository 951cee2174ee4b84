"""Trainings by torchtitan's own trainer: ``torchrun titan_runs.py HOME NAME…``, results in ``HOME/NAME``."""

from __future__ import annotations

from engines import titan_on_cpu  # noqa: F401

# isort: split
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.config.configs import DebugConfig
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.models.llama3 import model_registry as llama3
from torchtitan.models.qwen3 import model_registry as qwen3
from torchtitan.trainer import Trainer

from engines.titan_cases import BATCH, CASES, SEQ_LEN, STEPS, WEIGHT_DECAY, Case, batches
from exsel.engines.torchtitan import with_mechanisms
from exsel.engines.torchtitan.config_registry import mechanism_group
from exsel.files import write_json

# spmd_types, torchtitan's default, needs a later PyTorch.
BACKEND = "spmd_types" if torch.__version__ >= "2.14" else "partial_dtensor"
PARALLELISM: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "tp": {"tensor_parallel_degree": 2},
    "cp": {"context_parallel_degree": 2, "context_parallel_load_balancer": None},
    "all": {"tensor_parallel_degree": 2, "context_parallel_degree": 2, "context_parallel_load_balancer": None},
}


class FixedBatches(BaseDataLoader):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        vocab_size: int

    def __init__(self, config: Config, *, dp_rank: int, dp_world_size: int, **kwargs: Any) -> None:
        self.vocab_size, self.rank, self.size = config.vocab_size, dp_rank, dp_world_size

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in batches(self.vocab_size):
            ids, labels, positions = (tensor.chunk(self.size)[self.rank] for tensor in batch)
            yield {"input": ids, "positions": positions}, labels

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config): ...

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__()

    encode = decode = get_vocab_size = None  # type: ignore[assignment]


def spec(case: Case) -> Any:
    """A debug model of torchtitan with two layers and the case's mechanisms."""
    plain = {"llama3": llama3, "qwen3": qwen3}[case.model]("debugmodel")
    return with_mechanisms(replace(plain, model=replace(plain.model, layers=plain.model.layers[:2])), **case.mechanisms)


def train(home: Path, name: str) -> None:
    kind, _, how = name.partition("-")
    case = CASES[kind]
    model_spec = spec(case)
    optimizer = default_adamw(lr=case.rate, weight_decay=WEIGHT_DECAY)
    optimizer.param_groups.insert(0, mechanism_group(case.mechanism_rate))
    optimizer.implementation = "for-loop"
    out = home / name
    config = Trainer.Config(
        model_spec=model_spec,
        dump_folder=str(out),
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=model_spec.model.vocab_size)),
        tokenizer=NoTokenizer.Config(),
        dataloader=FixedBatches.Config(vocab_size=model_spec.model.vocab_size),
        optimizer=optimizer,
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=0, decay_ratio=0.0),
        training=TrainingConfig(
            local_batch_size=BATCH // (2 if how in ("fsdp", "all") else 1),
            global_batch_size=BATCH,
            seq_len=SEQ_LEN,
            steps=STEPS,
            mixed_precision_param="float32",
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(spmd_backend=BACKEND, **PARALLELISM.get(how, {})),
        checkpoint=CheckpointManager.Config(
            enable=True,
            initial_load_path=str(home / f"{kind}-start"),
            initial_load_in_hf=True,
            last_save_in_hf=how != "fsdp",
            interval=100,
        ),
        activation_checkpoint=SelectiveAC.Config(),
        debug=DebugConfig(enable_structured_logging=False),
    )
    trainer = config.build()
    losses: list[float] = []
    trainer.metrics_processor.log = lambda step, loss, *args, **kwargs: losses.append(loss)
    trainer.metrics_processor.should_log = lambda step: True
    gradients: dict[str, Tensor] = {}
    step = trainer.optimizers.step

    def watched_step() -> None:
        if not gradients:
            for name, parameter in trainer.model_parts[0].named_parameters():
                gradients[name.replace("_checkpoint_wrapped_module.", "")] = whole(parameter.grad)
        step()

    trainer.optimizers.step = watched_step
    trainer.train()
    trainer.close()
    if torch.distributed.get_rank() == 0:
        save_file(in_folder_names(model_spec, gradients), out / "gradients.safetensors")
        write_json(out / "losses.json", losses)


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def in_folder_names(model_spec: Any, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by the names that the weights have in a folder of ``ExselForCausalLM``."""
    model = model_spec.model.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(gradients[name])
    weights = model_spec.state_dict_adapter(model_spec.model, None).to_hf(model.state_dict())
    return {name: tensor.contiguous() for name, tensor in weights.items() if tensor.is_floating_point()}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        train(Path(sys.argv[1]), name)
    torch.distributed.destroy_process_group()
