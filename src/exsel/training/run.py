"""One training run, from its settings to a saved model and a result."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from exsel.data import PackedData, collate
from exsel.errors import ExselError, LoadError, explained
from exsel.files import MANIFEST, check_sealed, locked, read_object, seal, write_json
from exsel.float32_products import fast_products
from exsel.training.final_measurements import measure_trained
from exsel.training.mechanism_parameters import mechanism_parameters
from exsel.training.monitor import Monitor
from exsel.training.output_folder import (
    CHECKPOINT,
    METRICS,
    MODEL,
    MODEL_STAGING,
    RESULT,
    SETTINGS,
    checkpoints,
    staged,
)
from exsel.training.own_model import OwnModel
from exsel.training.processes import Processes, joined
from exsel.training.progress import Progress
from exsel.training.run_model import KEPT_CHECKPOINTS, build_model
from exsel.training.settings import Settings
from exsel.training.sharding import gathered, shard
from exsel.training.step_record import StepRecord
from exsel.training.trainer import ExselTrainer
from exsel.upgrading.loading import quiet_transformers

# Points of the training curve in a result; metrics.jsonl has every step.
_CURVE_POINTS = 1000
# What error messages call the hashes in a run's settings.
_HASHES = {"data_sha256": "what the data holds", "model_sha256": "model"}
_ABSENT = object()


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """A run was asked to stop, and saved a checkpoint to go on from."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.signal = signal
        self.step = step


def train_run(
    settings: Settings,
    data: PackedData,
    folder: Path,
    *,
    name: str,
    progress: Progress,
    resume: bool = False,
    model: Any = None,
) -> dict[str, Any]:
    """Train, and save the model, its record and its result in ``folder``; returns the run's entry in ``results.json``.

    Several processes that a launcher started train together if each calls this; the first one writes.

    Args:
        settings, data: of the run.
        folder: the run's own. It may hold a run only with ``resume``.
        name: how the run is shown.
        progress: the display, of every process.
        resume: go on from the last checkpoint in ``folder``; a finished run returns its result.
        model: the result of :func:`exsel.training.run_model.build_model`, if it has been called already.

    Raises:
        ExselError: a folder, data or settings that cannot be used or gone on with, a full disk, a loss that is not
            finite, or the end of another process.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    with joined(settings.device) as processes, ExitStack() as held:
        check_shared(settings, processes)

        def begin() -> tuple[dict[str, Any] | None, Path | None, int]:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            check_begun(folder, settings, data, resume=resume)
            if done := finished(folder):
                return done, None, 0
            write_json(folder / SETTINGS, _content(settings, data))
            return None, *_last_checkpoint(folder)

        done, checkpoint, step = processes.first(begin)
        if done is not None:
            progress.kept(name, done["validation_curve"])
            return done
        if checkpoint is not None and not checkpoint.is_dir():
            raise ExselError(
                f"process {processes.rank} does not find {checkpoint}: all machines must see the same --out"
            )
        if len(set(processes.gather(data.sha256()))) > 1:
            raise ExselError("the processes have loaded different data: all machines must see the same --data")
        progress.start(name, settings.steps, step)
        try:
            with fast_products(settings.device):
                return _train(settings, data, folder, checkpoint, progress=progress, model=model, processes=processes)
        finally:
            progress.finish()


def check_shared(settings: Settings, processes: Processes) -> None:
    """Check that the processes can share the work of each step."""
    if settings.micro_batch_size % processes.count:
        raise ExselError(
            f"--batch-size {settings.batch_size} with --accumulation {settings.accumulation} gives "
            f"{settings.micro_batch_size} sequences at a time, which {processes.count} processes cannot share equally"
        )
    if settings.shard and processes.count == 1:
        raise ExselError("--shard divides the model among several processes, and there is one: start it with torchrun")
    if settings.factory and (settings.shard or settings.activation_checkpointing):
        raise ExselError(
            "--shard and --activation-checkpointing know transformers models alone, and --model is a function"
        )


def _train(
    settings: Settings,
    data: PackedData,
    folder: Path,
    checkpoint: Path | None,
    *,
    progress: Progress,
    model: Any,
    processes: Processes,
) -> dict[str, Any]:
    if model is None:
        model = build_model(settings, data)
    device = torch.device(settings.device)
    model.to(device)
    if settings.activation_checkpointing:
        with explained("--activation-checkpointing"):
            # Older versions of transformers have its older name alone.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    if settings.shard:
        with explained("--shard"):
            shard(model, layers_to_compile(model), processes, device)
    record = StepRecord.begin(folder, checkpoint, writes=processes.is_first)
    monitor = Monitor(
        settings=settings, validation=data.validation, record=record, progress=progress, processes=processes
    )
    train = data.train
    if isinstance(train, IterableDataset):
        # A stream is repeated so that every step is full. The trainer's BlockOrder repeats other blocks.
        train = train.shuffle(seed=settings.seed, buffer_size=1000).repeat(None)
    with quiet_transformers():
        trainer = ExselTrainer(
            model=model,
            args=_arguments(settings, folder, processes),
            train_dataset=train,
            data_collator=collate,
            processing_class=data.tokenizer,
            callbacks=[monitor],
            token_learning_rate=settings.token_learning_rate,
            position_learning_rate=settings.position_learning_rate,
            record=record,
            processes=processes,
        )
        trainer.remove_callback(PrinterCallback)
        monitor.log = trainer.log
        if processes.count > 1:
            # Trainer has seeded all processes alike, and no two may drop the same activations.
            torch.manual_seed(settings.seed + processes.rank)
        with monitor.listen():
            compile_seconds, has_unused = _compile(model, settings, data, processes)
            trainer.accelerator.ddp_handler.find_unused_parameters = has_unused
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        signal, done = processes.largest(monitor.signal or 0), trainer.state.global_step
        if signal and done < settings.steps:
            raise Interrupted(signal, done)
        result = _result(settings, data, model, monitor, compile_seconds, processes)
        weights = gathered(model.state_dict(keep_vars=True), keep=processes.is_first)
        if processes.is_first:
            with staged(folder, MODEL_STAGING, "the model") as staging:
                model.save_pretrained(staging, state_dict=weights)
                data.tokenizer.save_pretrained(staging)
                shutil.rmtree(folder / MODEL, ignore_errors=True)
                staging.rename(folder / MODEL)
            write_json(folder / RESULT, result)
            seal(folder, (folder / name for name in (SETTINGS, METRICS, RESULT, MODEL)))
            for leftover in checkpoints(folder):
                shutil.rmtree(leftover)
    processes.wait()
    if signal:
        # This run finished before it could stop. The runs after it must not begin.
        raise Interrupted(signal, done)
    return result


def check_begun(folder: Path, settings: Settings, data: PackedData, *, resume: bool) -> None:
    """Check that a folder holds no part of a run, or with ``resume`` a run with these settings on this data."""
    if not (folder / SETTINGS).exists():
        names = (METRICS, RESULT, MANIFEST, MODEL)
        if rest := [*checkpoints(folder), *(path for name in names if (path := folder / name).exists())]:
            raise ExselError(f"{rest[0]} is of a run whose {SETTINGS} is missing: choose another folder")
        return
    if not resume:
        raise ExselError(f"{folder} holds a run: resume it, or choose another folder")
    found, content = read_object(folder / SETTINGS), _content(settings, data)
    changed = [name for name in {**content, **found} if found.get(name, _ABSENT) != content.get(name, _ABSENT)]
    # The model may have another path if its hash is the same.
    if named := [_HASHES.get(name, name) for name in changed if name != "model"]:
        raise ExselError(
            f"{folder} was begun with other settings ({', '.join(named)}): repeat the command that began it "
            "with --resume added, or use another --out"
        )


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, whose files must be as they were saved; ``None`` if it is not finished."""
    remedy = f"restore it, or delete {folder} to run it again"
    if not (folder / MANIFEST).exists():
        rest = next((path for name in (RESULT, MODEL) if (path := folder / name).exists()), None)
        if rest is not None and not checkpoints(folder):
            raise ExselError(f"{rest} is of a finished run whose {MANIFEST} is missing: {remedy}")
        return None
    try:
        if not check_sealed(folder).issuperset((SETTINGS, METRICS, RESULT)):
            raise LoadError(f"{folder / MANIFEST} lacks files: it is damaged")
    except LoadError as error:
        raise ExselError(f"{error}: {remedy}") from error
    return read_object(folder / RESULT)


def _content(settings: Settings, data: PackedData) -> dict[str, Any]:
    """What a run's settings file holds: the settings, and hashes of what they only name."""
    return {**settings.to_dict(), "data_sha256": data.sha256(), "model_sha256": settings.model_sha256()}


def _last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The checkpoint to go on from, which must be whole, and its step; ``None`` and 0 if there is none."""
    saved = checkpoints(folder)
    if not saved:
        return None, 0
    *others, checkpoint = saved
    step = int(checkpoint.name.removeprefix(CHECKPOINT))
    try:
        if not (checkpoint / MANIFEST).is_file():
            raise LoadError(f"{MANIFEST} is missing")
        names = check_sealed(checkpoint)
        for path in sorted(checkpoint.rglob("*")):
            name = path.relative_to(checkpoint).as_posix()
            if path.is_file() and not path.name.startswith(".") and name not in {MANIFEST, *names}:
                raise LoadError(f"{name} was not saved with it")
        if read_object(checkpoint / "trainer_state.json").get("global_step") != step:
            raise LoadError("it was saved after another step")
    except ExselError as error:
        before = f"go on from {others[-1]}" if others else "begin anew"
        raise ExselError(f"checkpoint {checkpoint} cannot be read ({error}): delete that folder to {before}") from error
    return checkpoint, step


def _arguments(settings: Settings, folder: Path, processes: Processes) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=processes.share(settings.micro_batch_size),
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=0.95,
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        save_steps=settings.save_every or settings.steps,
        save_total_limit=KEPT_CHECKPOINTS,
        logging_steps=max(1, settings.steps // 100),
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=settings.device != "cpu",
    )
    # A launcher's environment does not change what the settings say.
    arguments.mixed_precision = "bf16" if settings.dtype == "bfloat16" else "no"
    # Trainer would multiply the batch by the number of GPUs.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _compile(model: Any, settings: Settings, data: PackedData, processes: Processes) -> tuple[float, bool]:
    """Compile the layers if asked to, and run one step that changes no weights.

    Returns the seconds that it took, and whether a parameter that should train had no part in it.
    """
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    torch.compiler.reset()
    if settings.compile:
        for layer in layers_to_compile(model):
            layer.compile()
    batch = first_batch(data, processes.share(settings.micro_batch_size), device)
    start = time.perf_counter()
    model.train()
    with torch.random.fork_rng(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = model(**batch).loss
    loss.backward()
    has_unused = any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, has_unused


def first_batch(data: PackedData, count: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The first blocks to train on, again from the start if there are fewer."""
    rows = [row for _, row in zip(range(count), data.train, strict=False)]
    return {name: tensor.to(device) for name, tensor in collate((rows * count)[:count]).items()}


def layers_to_compile(model: Any) -> list[nn.Module]:
    """The layers, which share one compilation; the model itself if it has no list of layers."""
    stacks = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    if isinstance(model, OwnModel):
        return next((layers for layers in stacks if len(layers) > 1 and len(set(map(type, layers))) == 1), [model])
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    return next((layers for layers in stacks if len(layers) == count), [model])


def _result(
    settings: Settings,
    data: PackedData,
    model: Any,
    monitor: Monitor,
    compile_seconds: float,
    processes: Processes,
) -> dict[str, Any]:
    lines = monitor.record.lines
    validated = [line for line in lines if "validation_loss" in line]
    loss = validated[-1]["validation_loss"]
    step_seconds = monitor.record.step_seconds()
    quartiles = statistics.quantiles(step_seconds, n=4) if len(step_seconds) > 1 else [0.0] * 3
    return {
        "variant": settings.variant.name,
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "new_parameters": sum(parameter.numel() for parameter in mechanism_parameters(model).values()),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / data.description.bytes_per_token,
        "steps": settings.steps,
        "tokens": settings.steps * settings.tokens_per_step,
        "train_seconds": monitor.record.seconds,
        "compile_seconds": compile_seconds,
        "ms_per_step": statistics.median(step_seconds) * 1e3,
        "ms_per_step_spread": (quartiles[2] - quartiles[0]) * 1e3,
        "peak_memory_bytes": processes.largest(monitor.peak_memory),
        "processes": processes.count,
        "train_curve": _curve(lines[:: math.ceil(len(lines) / _CURVE_POINTS)], "loss"),
        "validation_curve": _curve(validated, "validation_loss"),
        **measure_trained(model, settings, data, processes, validation=monitor.evaluation),
    }


def _curve(lines: list[dict[str, Any]], loss: str) -> list[dict[str, Any]]:
    return [{**{key: line[key] for key in ("step", "tokens", "seconds")}, "loss": line[loss]} for line in lines]
