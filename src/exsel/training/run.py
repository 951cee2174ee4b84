"""One training run, from its settings to a saved model and a result."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from exsel.data import PackedData, collate
from exsel.diagnostics import similarity_bias
from exsel.errors import ExselError, LoadError, first_line
from exsel.files import MANIFEST, check_sealed, locked, read_object, seal, write_json
from exsel.models import ExselForCausalLM
from exsel.training.disk import KEPT_CHECKPOINTS
from exsel.training.mechanism_parameters import new_parameters
from exsel.training.monitor import Interruption, Monitor, Progress, Record
from exsel.training.output_folder import (
    CHECKPOINT,
    METRICS,
    MODEL,
    MODEL_STAGING,
    RESULT,
    SETTINGS,
    checkpoints,
    last_good,
)
from exsel.training.run_model import build_model
from exsel.training.saved_models import quiet_transformers
from exsel.training.settings import Settings
from exsel.training.trainer import ExselTrainer

# Blocks over which the similarity bias is taken.
_SIMILARITY_BLOCKS = 8
# How the hashes in a run's settings are called in words.
_NAMES = {"data_sha256": "what the data holds", "model_sha256": "model"}
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
    """Train, and save the model, its record and its result in ``folder``.

    Args:
        settings: checked.
        data: loaded as the settings say.
        folder: the run's own; made where it does not exist, without a run in it unless ``resume``.
        name: how the run is shown.
        progress: where.
        resume: go on from the last checkpoint in ``folder``; a finished run returns its result.
        model: what :func:`exsel.training.run_model.build_model` gave, where it has been called already.

    Returns:
        The run's entry in ``results.json``.

    Raises:
        ExselError: a folder that holds something else or in which another process is at work, damaged files, other
            settings or other data than those of the run to resume, a full disk, or a loss that stopped being a number.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        check_begun(folder, settings, data, resume=resume)
        result = finished(folder)
        if result is None:
            result = _train(settings, data, folder, name=name, progress=progress, model=model)
    return result


def _train(
    settings: Settings, data: PackedData, folder: Path, *, name: str, progress: Progress, model: Any
) -> dict[str, Any]:
    write_json(folder / SETTINGS, _content(settings, data))
    saved = checkpoints(folder)
    checkpoint = saved[-1] if saved else None
    step = 0
    if checkpoint is not None:
        step = _check_checkpoint(checkpoint, instead=saved[-2] if len(saved) > 1 else None)
    if model is None:
        model = build_model(settings, data)
    record = Record.begin(folder / METRICS, checkpoint)
    losses: list[Tensor] = []
    interruption = Interruption()
    monitor = Monitor(
        settings=settings,
        folder=folder,
        validation=data.validation,
        losses=losses,
        record=record,
        progress=progress,
        interruption=interruption,
    )
    train = data.train
    if isinstance(train, IterableDataset):
        # Over and over, so that every step is whole; blocks at hand are repeated by the trainer's own order.
        train = train.shuffle(seed=settings.seed, buffer_size=1000).repeat(None)
    with quiet_transformers():
        trainer = ExselTrainer(
            model=model,
            args=_arguments(settings, folder),
            train_dataset=train,
            data_collator=collate,
            processing_class=data.tokenizer,
            callbacks=[monitor],
            selective_learning_rate=settings.selective_learning_rate,
            losses=losses,
            save_record=record.save,
        )
        trainer.remove_callback(PrinterCallback)
        monitor.log = trainer.log
        progress.start(name, settings.steps, step)
        try:
            with interruption.listen():
                compile_seconds = _compile(model, settings, data)
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            progress.finish()
        done = trainer.state.global_step
        if interruption.signal is not None and done < settings.steps:
            raise Interrupted(interruption.signal, done)
        result = _result(settings, data, model, monitor, compile_seconds)
        _save_model(model, data, folder)
    write_json(folder / RESULT, result)
    seal(folder, (folder / name for name in (SETTINGS, METRICS, RESULT, MODEL)))
    for leftover in checkpoints(folder):
        shutil.rmtree(leftover)
    if interruption.signal is not None:
        # Asked to stop when there was nothing left to stop: whatever was to come after this run is not begun.
        raise Interrupted(interruption.signal, done)
    return result


def check_begun(folder: Path, settings: Settings, data: PackedData, *, resume: bool) -> None:
    """Check that a folder holds nothing of a run, or one with these settings on this data, to go on with.

    Raises:
        ExselError: it holds parts of a run, or one that is not to be resumed or was begun with something else.
    """
    if not (folder / SETTINGS).exists():
        names = (METRICS, RESULT, MANIFEST, MODEL)
        rest = [*checkpoints(folder), *(path for name in names if (path := folder / name).exists())]
        if rest:
            raise ExselError(f"{rest[0]} is of a run whose {SETTINGS} is missing: choose another folder")
        return
    if not resume:
        raise ExselError(f"{folder} holds a run: resume it, or choose another folder")
    found, content = read_object(folder / SETTINGS), _content(settings, data)
    changed = [name for name in {**content, **found} if found.get(name, _ABSENT) != content.get(name, _ABSENT)]
    # A file may be moved, and what it says must stay.
    if named := [_NAMES.get(name, name) for name in changed if name != "model"]:
        raise ExselError(
            f"{folder} was begun with other settings ({', '.join(named)}): repeat the command that began it "
            "with --resume added, or use another --out"
        )


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is finished, and ``None`` of another.

    Raises:
        ExselError: something that the finished run saved is missing or has changed.
    """
    remedy = f"restore it, or delete {folder} to run it again"
    if not (folder / MANIFEST).exists():
        rest = next((path for name in (RESULT, MODEL) if (path := folder / name).exists()), None)
        if rest is not None and not checkpoints(folder):
            raise ExselError(f"{rest} is of a finished run whose {MANIFEST} is missing: {remedy}")
        return None
    try:
        names = check_sealed(folder)
        if not names.issuperset((SETTINGS, METRICS, RESULT)):
            raise LoadError(f"{folder / MANIFEST} lacks files: it is damaged")
    except LoadError as error:
        raise ExselError(f"{error}: {remedy}") from error
    return read_object(folder / RESULT)


def _content(settings: Settings, data: PackedData) -> dict[str, Any]:
    """What a run's settings file holds: the settings, and hashes of what they only name."""
    return {**settings.to_dict(), "data_sha256": data.sha256(), "model_sha256": settings.model_sha256()}


def _check_checkpoint(checkpoint: Path, *, instead: Path | None) -> int:
    """The step after which a checkpoint was saved.

    Args:
        checkpoint: to go on from.
        instead: the one before.

    Raises:
        ExselError: something in it is missing, has changed or was not saved with it.
    """
    try:
        if not (checkpoint / MANIFEST).is_file():
            raise LoadError(f"{MANIFEST} is missing")
        names = check_sealed(checkpoint)
        for path in sorted(checkpoint.rglob("*")):
            name = path.relative_to(checkpoint).as_posix()
            if path.is_file() and not path.name.startswith(".") and name not in {MANIFEST, *names}:
                raise LoadError(f"{name} was not saved with it")
        step = int(checkpoint.name.removeprefix(CHECKPOINT))
        if read_object(checkpoint / "trainer_state.json").get("global_step") != step:
            raise LoadError("it was saved after another step")
    except ExselError as error:
        before = "begin anew" if instead is None else f"go on from {instead}"
        raise ExselError(f"checkpoint {checkpoint} cannot be read ({error}): delete that folder to {before}") from error
    return step


def _arguments(settings: Settings, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size // settings.accumulation,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=settings.save_every or settings.steps,
        save_total_limit=KEPT_CHECKPOINTS,
        logging_steps=max(1, settings.steps // 100),
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=settings.device != "cpu",
    )
    # One GPU, also where there are several: over all of them Trainer would multiply the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _compile(model: Any, settings: Settings, data: PackedData) -> float:
    """Compile the layers where asked, and run one step without consequence; the seconds that took."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    torch.compiler.reset()
    if settings.compile:
        for layer in _layers(model):
            layer.compile()
    part = settings.batch_size // settings.accumulation
    rows = [row for _, row in zip(range(part), data.train, strict=False)]
    rows = (rows * part)[:part]
    batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
    start = time.perf_counter()
    model.to(device).train()
    with torch.random.fork_rng(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _layers(model: Any) -> list[nn.Module]:
    """The layers, which share one compilation; the model itself where they cannot be told."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    stacks = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in stacks if len(layers) == count), [model])


def _result(
    settings: Settings, data: PackedData, model: Any, monitor: Monitor, compile_seconds: float
) -> dict[str, Any]:
    lines = monitor.record.lines
    curve = [line for line in lines if "validation_loss" in line]
    loss = curve[-1]["validation_loss"]
    step_seconds = monitor.record.step_seconds()
    quartiles = statistics.quantiles(step_seconds, n=4) if len(step_seconds) > 1 else [0.0] * 3
    similarity_blocks = data.validation.select(range(min(_SIMILARITY_BLOCKS, len(data.validation))))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "variant": settings.variant,
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "parameters": parameters,
        "new_parameters": new_parameters(model),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / data.description.bytes_per_token,
        "steps": settings.steps,
        "tokens": settings.steps * settings.tokens_per_step,
        "train_seconds": monitor.record.seconds,
        "compile_seconds": compile_seconds,
        "ms_per_step": statistics.median(step_seconds) * 1e3,
        "ms_per_step_spread": (quartiles[2] - quartiles[0]) * 1e3,
        "peak_memory_bytes": monitor.peak_memory,
        "train_curve": [{key: line[key] for key in ("step", "tokens", "seconds", "loss")} for line in _thinned(lines)],
        "validation_curve": [
            {**{key: line[key] for key in ("step", "tokens", "seconds")}, "loss": line["validation_loss"]}
            for line in curve
        ],
        "similarity": similarity_bias(
            model,
            similarity_blocks,
            batch_size=settings.batch_size // settings.accumulation,
            device=torch.device(settings.device),
        )
        if isinstance(model, ExselForCausalLM)
        else None,
    }


def _thinned(lines: list[dict[str, Any]], most: int = 1000) -> list[dict[str, Any]]:
    """Every n-th line, so that a long run's result stays small; metrics.jsonl has them all."""
    return lines[:: -(-len(lines) // most)] if lines else []


def _save_model(model: Any, data: PackedData, folder: Path) -> None:
    staging = folder / MODEL_STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.save_pretrained(staging)
        data.tokenizer.save_pretrained(staging)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        staging.rename(folder / MODEL)
    except (OSError, SafetensorError) as error:
        raise ExselError(
            f"the model could not be saved in {folder} ({first_line(error)}); {last_good(folder)}. "
            "Mend that, then go on with --resume"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
