"""transformers' Trainer with what this project promises beyond it.

Checkpoints that appear whole or not at all and hold nothing pickled; a parameter group for the temperatures'
scalars; the loss of every single step on record; a stop at the first loss that is not a number.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from exsel.errors import ExselError, first_line
from exsel.files import seal
from exsel.training import checkpoint_state
from exsel.training.mechanism_parameters import scalar_names
from exsel.training.output_folder import CHECKPOINT, CHECKPOINT_STAGING, METRICS, checkpoints, last_good
from exsel.upgrading import from_pretrained


class ExselTrainer(Trainer):
    """See the module's description.

    Args:
        selective_learning_rate: peak of the scalars' learning rate; it follows the same schedule.
        losses: where each step's loss goes, one tensor a micro-batch: whoever reads it empties it.
        save_record: writes the record of the steps so far into a file of a checkpoint.
    """

    optimizer: Any

    def __init__(
        self,
        *,
        args: TrainingArguments,
        selective_learning_rate: float,
        losses: list[Tensor],
        save_record: Callable[[Path], None],
        **kwargs: Any,
    ) -> None:
        self.selective_learning_rate = selective_learning_rate
        self.losses = losses
        self.save_record = save_record
        super().__init__(args=args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's groups, with the mechanisms' scalars in one of their own: no decay, their own learning rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            scalars = scalar_names(model)
            decayed = set(self.get_decay_parameter_names(model)) - scalars
            groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "scalar": []}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    kind = "scalar" if name in scalars else "decayed" if name in decayed else "plain"
                    groups[kind].append(parameter)
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            extra: dict[str, dict[str, float]] = {
                "decayed": {"weight_decay": self.args.weight_decay},
                "plain": {"weight_decay": 0.0},
                "scalar": {"weight_decay": 0.0, "lr": self.selective_learning_rate},
            }
            self.optimizer = optimizer_cls(
                [{"params": parameters, **extra[kind]} for kind, parameters in groups.items() if parameters],
                **optimizer_kwargs,
            )
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if not hasattr(self.train_dataset, "__len__"):
            return None
        length = self.args.max_steps * self.args.gradient_accumulation_steps * self.args.train_batch_size
        return BlockOrder(len(self.train_dataset), length=length, seed=self.args.seed)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Trainer's step; the loss goes on record as it is, without waiting for the device."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss.detach())
        return loss

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / CHECKPOINT_STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save into a folder of another name and rename it when all is there."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ExselError(
                    f"{name} holds values that are not finite after step {self.state.global_step}; "
                    f"{last_good(Path(self.args.output_dir))}. Try a lower --lr"
                )
        folder = Path(self.args.output_dir)
        staging = folder / CHECKPOINT_STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            name = f"{CHECKPOINT}{self.state.global_step}"
            (staging / name / "training_args.bin").unlink(missing_ok=True)  # a pickle, and settings.json says it all
            self.save_record(staging / name / METRICS)
            seal(staging / name, (staging / name).iterdir())
            shutil.rmtree(folder / name, ignore_errors=True)
            (staging / name).rename(folder / name)
        except (OSError, SafetensorError) as error:
            raise ExselError(
                f"the checkpoint after step {self.state.global_step} could not be saved in {folder} "
                f"({first_line(error)}); {last_good(folder)}. Mend that, then go on with --resume"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        for old in checkpoints(folder)[: -self.args.save_total_limit]:
            shutil.rmtree(old)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            checkpoint_state.save_optimizer(
                Path(output_dir), self.optimizer.state_dict(), self.lr_scheduler.state_dict()
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Trainer's own cannot read an upgraded configuration, and passes over what is missing."""
        if model is not None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = checkpoint_state.load_optimizer(Path(checkpoint))
        self.optimizer.load_state_dict(optimizer)
        self.lr_scheduler.load_state_dict(scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        checkpoint_state.save_random(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoint_state.load_random(Path(checkpoint))


def step_losses(losses: list[Tensor], parts: int) -> list[float]:
    """The losses of whole steps on record, oldest first, taken off it; waits for the device."""
    whole = len(losses) // parts * parts
    taken = torch.stack(losses[:whole]).view(-1, parts).sum(1).tolist() if whole else []
    del losses[:whole]
    return [float(loss) for loss in taken]


def stop_if_not_finite(losses: list[float], first_step: int, folder: Path) -> None:
    """Stop at the first loss that is not a number.

    Raises:
        ExselError: naming the step and the last good checkpoint.
    """
    for offset, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise ExselError(
                f"the loss became {loss} at step {first_step + offset}; {last_good(folder)}. "
                "Try a lower --lr, more warm-up or --dtype float32"
            )


class BlockOrder(Sampler[int]):
    """The blocks of a whole run in order: one permutation of all after the other, cut where the run ends.

    Every step is whole, also where the blocks run out in the middle of one; and the order is told by its arguments
    alone, so that variants read the same and a resumed run goes on where it stopped.

    Args:
        blocks: how many there are.
        length: how many the run reads.
        seed: of the permutations.
    """

    def __init__(self, blocks: int, *, length: int, seed: int) -> None:
        self.blocks = blocks
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        left = self.length
        while left > 0:
            order = torch.randperm(self.blocks, generator=generator)[:left]
            left -= len(order)
            yield from order.tolist()
