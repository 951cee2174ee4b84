"""transformers' Trainer with further guarantees.

Checkpoints appear whole or not at all and hold no pickles. The temperatures' scalars have their own parameter group.
The loss of every step is recorded. The same seed gives the same blocks in the same order.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments

from exsel.errors import ExselError
from exsel.files import seal
from exsel.training import checkpoint_state
from exsel.training.mechanism_parameters import scalar_names
from exsel.training.output_folder import CHECKPOINT, CHECKPOINT_STAGING, checkpoints, last_good, staged
from exsel.training.own_model import OwnModel
from exsel.training.processes import Processes
from exsel.training.sharding import divided, gathered
from exsel.training.step_record import StepRecord
from exsel.upgrading.loading import load_checked


class ExselTrainer(Trainer):
    """A Trainer with the guarantees of the module's description.

    Args:
        token_learning_rate, position_learning_rate: peaks for the scalars, and for those of positional terms.
        record: the record of the steps; it gets each micro-batch's loss and is saved in each checkpoint.
        processes: those that train together. A model that :func:`exsel.training.sharding.shard` divided stays so; of
            any other each has a copy (DistributedDataParallel).
    """

    optimizer: Any

    def __init__(
        self,
        *,
        args: TrainingArguments,
        token_learning_rate: float,
        position_learning_rate: float,
        record: StepRecord,
        processes: Processes | None = None,
        **kwargs: Any,
    ) -> None:
        self.processes = processes or Processes()
        self.token_learning_rate = token_learning_rate
        self.position_learning_rate = position_learning_rate
        self.record = record
        super().__init__(args=args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's groups, with the mechanisms' scalars in two of their own: no decay, their own learning rates."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kinds = dict.fromkeys(self.get_decay_parameter_names(model), "decayed")
            for name in scalar_names(model):
                kinds[name] = "position" if name.endswith(".position_logit") else "token"
            groups: dict[str, dict[str, Any]] = {
                "decayed": {"params": [], "weight_decay": self.args.weight_decay},
                "plain": {"params": [], "weight_decay": 0.0},
                "token": {"params": [], "weight_decay": 0.0, "lr": self.token_learning_rate},
                "position": {"params": [], "weight_decay": 0.0, "lr": self.position_learning_rate},
            }
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups[kinds.get(name, "plain")]["params"].append(parameter)
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_cls([group for group in groups.values() if group["params"]], **optimizer_kwargs)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's blocks of each batch. A stream holds only this process's documents."""
        blocks, own = self.train_dataset, self.args.train_batch_size
        order: BlockOrder | None = None
        if hasattr(blocks, "__len__"):
            length = self.args.max_steps * self.args.gradient_accumulation_steps * own * self.processes.count
            order = BlockOrder(
                len(blocks), length=length, seed=self.args.seed, processes=self.processes, consecutive=own
            )
        return DataLoader(
            blocks,
            batch_size=own,
            sampler=order,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if isinstance(model, FSDPModule):
            # What is prepared already, Trainer has accelerate neither wrap nor divide.
            prepared: nn.Module = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            return prepared
        wrapped: nn.Module = super()._wrap_model(model, training, dataloader)
        return wrapped

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Trainer's step; the loss is recorded as a tensor, without waiting for the device."""
        if isinstance(self.model, FSDPModule):
            # Between machines, gradients travel once a step, not with each micro-batch.
            self.model.set_requires_all_reduce(self.accelerator.sync_gradients)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.record.losses.append(loss.detach())
        return loss

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / CHECKPOINT_STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save into a temporary folder and rename it when it is complete."""
        folder, step = Path(self.args.output_dir), self.state.global_step
        for name, parameter in self.model.named_parameters():
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if not torch.isfinite(own).all():
                raise ExselError(
                    f"{name} holds values that are not finite after step {step}; {last_good(folder)}. Try a lower --lr"
                )
        if not self.processes.is_first:
            # The others give their parts to the first, which alone writes.
            super()._save_checkpoint(model, trial)
            return
        with staged(folder, CHECKPOINT_STAGING, f"the checkpoint after step {step}") as staging:
            super()._save_checkpoint(model, trial)
            saved = staging / f"{CHECKPOINT}{step}"
            (saved / "training_args.bin").unlink(missing_ok=True)  # a pickle; settings.json says the same
            self.record.save(saved)
            seal(saved, saved.iterdir())
            shutil.rmtree(folder / saved.name, ignore_errors=True)
            saved.rename(folder / saved.name)
        for old in checkpoints(folder)[: -self.args.save_total_limit]:
            shutil.rmtree(old)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        checkpoint_state.save_optimizer(
            Path(output_dir),
            self.optimizer.state_dict(),
            self.lr_scheduler.state_dict(),
            writes=self.processes.is_first,
        )

    def _save_rng_state(self, output_dir: str) -> None:
        states = self.processes.gather(checkpoint_state.random_state())
        if self.processes.is_first:
            checkpoint_state.save_random(Path(output_dir), states)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Trainer's method; a model of the user's own, which may tie weights, is saved by its own."""
        weights = gathered(self.model.state_dict(keep_vars=True), keep=self.processes.is_first)
        if not isinstance(self.model, OwnModel):
            super()._save(output_dir, weights)
        elif self.processes.is_first:
            self.model.save_pretrained(str(output_dir))
            self.processing_class.save_pretrained(str(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Replaces Trainer's method, which cannot read upgraded configurations and ignores missing weights."""
        if isinstance(self.model, OwnModel):
            self.model.load(resume_from_checkpoint)
            return
        saved, _ = load_checked(resume_from_checkpoint, dtype=self.model.dtype)
        present = self.model.state_dict()
        self.model.load_state_dict({name: divided(value, present[name]) for name, value in saved.state_dict().items()})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer, scheduler = checkpoint_state.load_optimizer(Path(checkpoint))
            parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            for index, parameter in enumerate(parameters):
                state = optimizer["state"].get(index, {})
                state.update({name: divided(value, parameter) for name, value in state.items()})
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoint_state.load_random(Path(checkpoint), self.processes.rank)


class BlockOrder(Sampler[int]):
    """The blocks that a run reads, in order: one random permutation of all after another, cut where the run ends.

    Every step is full, even if the blocks run out in its middle. The order depends on the arguments alone, so variants
    read the same blocks and a resumed run continues where it stopped. Several processes take turns in it, each
    ``consecutive`` blocks, so that what they read together is what one process reads.
    """

    def __init__(
        self, blocks: int, *, length: int, seed: int, processes: Processes | None = None, consecutive: int = 1
    ) -> None:
        self.blocks, self.length, self.seed = blocks, length, seed
        self.processes, self.consecutive = processes or Processes(), consecutive

    def __len__(self) -> int:
        return self.length // self.processes.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.length, self.blocks):
            order = torch.randperm(self.blocks, generator=generator)
            for place, block in enumerate(order[: self.length - start].tolist(), start):
                if place // self.consecutive % self.processes.count == self.processes.rank:
                    yield block
