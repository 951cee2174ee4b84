"""One variant trained on real text: found again where it has been trained already, gone on with where it was stopped.

A run's folder is named after all that its result depends on, so that experiments share what they have in common.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_model

from evidence.papers.model_variants import ModelVariant
from evidence.papers.outcome import Budget, Job
from exsel.data import PackedData, load_data
from exsel.data.standard_library import corpus_name
from exsel.data.text_files import find_files, is_local
from exsel.files import write_json
from exsel.models import ExselForCausalLM
from exsel.training.output_folder import MODEL, RUNS, checkpoints
from exsel.training.run import check_begun, finished, train_run
from exsel.training.run_model import build_model
from exsel.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a run trains, and on how much.

    Args:
        layers, width, head_dim: of the decoder, which has ``width / head_dim`` heads.
        steps, seq_len, batch_size: steps of ``batch_size`` sequences of ``seq_len`` tokens.
        learning_rate: at its peak, of every variant.
        evaluations: points of the validation curve.
        evaluation_tokens: that are validated on.
        dtype, compile: how it is computed.
    """

    layers: int
    width: int
    head_dim: int
    steps: int
    seq_len: int
    batch_size: int
    learning_rate: float
    evaluations: int
    evaluation_tokens: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    @property
    def tokens(self) -> int:
        """That a run trains on."""
        return self.steps * self.batch_size * self.seq_len

    def in_words(self) -> str:
        """For :attr:`evidence.papers.outcome.Outcome.size`."""
        return (
            f"{self.layers} layers of width {self.width}, heads of {self.head_dim}, {self.tokens:,} tokens in "
            f"{self.steps} steps of {self.batch_size} × {self.seq_len}, learning rate "
            f"{self.learning_rate:g}, {self.dtype}"
        )


#: What each budget trains. On two CPU cores a run takes about a quarter of a minute; its rate is the best for the
#: baseline among 5e-3, 1e-2 and 1.5e-2. On a GPU: 10.6 million parameters cost 64 MFLOP a token and attention 14, so
#: that at 150 TFLOP/s, 15% of what an H100 can, 10.5 million tokens take 6 s; compiling, evaluating and saving double
#: that, and the largest experiments, of 30 runs, stay below 8 minutes. Its rate goes by the width, untuned.
SIZES: Mapping[Budget, Size] = {
    "smoke": Size(
        layers=2,
        width=32,
        head_dim=16,
        steps=4,
        seq_len=32,
        batch_size=2,
        learning_rate=3e-3,
        evaluations=2,
        evaluation_tokens=128,
    ),
    "cpu": Size(
        layers=4,
        width=64,
        head_dim=16,
        steps=400,
        seq_len=256,
        batch_size=4,
        learning_rate=1e-2,
        evaluations=10,
        evaluation_tokens=16384,
    ),
    "gpu": Size(
        layers=6,
        width=384,
        head_dim=64,
        steps=160,
        seq_len=1024,
        batch_size=64,
        learning_rate=2e-3,
        evaluations=10,
        evaluation_tokens=524288,
        dtype="bfloat16",
        compile=True,
    ),
}

_PACKAGES = ("transformers", "sympy")
# GPT-2's deviation of the initial weights, at its width; narrower models need larger ones.
_INITIALIZER_RANGE, _WIDTH = 0.02, 768


@dataclass(frozen=True)
class TrainedRun:
    """A variant that has been trained.

    Args:
        variant: that was trained.
        settings: with which.
        data: on what; its name and sizes are in ``data.description``.
        folder: the run's own, as :mod:`exsel.training.output_folder` says.
        result: what :func:`exsel.training.run.train_run` found.
    """

    variant: ModelVariant
    settings: Settings
    data: PackedData = field(repr=False)
    folder: Path
    result: dict[str, Any] = field(repr=False)

    @property
    def loss(self) -> float:
        """The final validation loss, in nats a token."""
        return float(self.result["loss"])

    def load(self) -> ExselForCausalLM:
        """The trained model on the CPU, in evaluation mode, with all that its variant puts in."""
        model = _build(self.variant, self.settings, self.data)
        # What is put in has no place in a configuration: the weights alone are read.
        load_model(model, self.folder / MODEL / "model.safetensors")
        model.eval()
        return model


def train_variant(
    job: Job,
    variant: ModelVariant,
    *,
    seed: int,
    learning_rate: float | None = None,
    seq_len: int | None = None,
    size: Size | None = None,
) -> TrainedRun:
    """Train a variant at the job's budget, or find it trained.

    Weights that variants share begin the same for the same seed, and batches come in the same order.

    Args:
        job: budget, device, data, folder and progress.
        variant: what to train.
        seed: of the weights and of the batches.
        learning_rate: at its peak; ``None``: the size's.
        seq_len: tokens a sequence, at as many tokens a step; ``None``: the size's.
        size: ``None``: that of the budget.

    Raises:
        ExselError: data that cannot be read or has changed, a damaged run, or a loss that stopped being a number.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
        ValueError: a ``seq_len`` that does not divide the tokens of a step.
    """
    size = _changed(SIZES[job.budget] if size is None else size, learning_rate, seq_len)
    settings = _settings(job, variant, seed, size)
    data = load_text(settings.data, size)
    folder = job.folder / RUNS / _run_name(variant, settings, size)
    check_begun(folder, settings, data, resume=True)
    if (result := finished(folder)) is not None:
        return TrainedRun(variant, settings, data, folder, result)
    if variant.addition is not None:
        # A checkpoint's configuration says nothing of what was put in: such a run begins anew.
        for checkpoint in checkpoints(folder):
            shutil.rmtree(checkpoint)
    model = _build(variant, settings, data)
    title = f"{variant.label}, seed {seed}"
    result = train_run(settings, data, folder, name=title, progress=job.progress, resume=True, model=model)
    return TrainedRun(variant, settings, data, folder, result)


def describe_size(job: Job, size: Size | None = None) -> str:
    """What runs of a job are of, in words: the model, the tokens, the text, the seeds."""
    size = SIZES[job.budget] if size is None else size
    text = " ".join(job.data) or (f"source of {' and '.join(_PACKAGES)}" if training_text(job) else corpus_name())
    seeds = "1 seed" if len(job.seeds) == 1 else f"{len(job.seeds)} seeds"
    return f"{size.in_words()}; {text}, a byte a token; {seeds} on {job.device}"


def training_text(job: Job) -> tuple[str, ...]:
    """What a job trains on, as ``--data`` names it; nothing: the standard library's source.

    A GPU reads more than the library has: there it is the source of two packages, 75 million bytes, that come with what
    exsel needs.
    """
    if job.data or job.budget != "gpu":
        return job.data
    packages = Path(sysconfig.get_paths()["purelib"])
    return tuple(str(packages / name) for name in _PACKAGES)


@functools.lru_cache(maxsize=4)
def load_text(data: tuple[str, ...], size: Size) -> PackedData:
    """The text in blocks of the size's length, each byte a token; what was loaded last is kept."""
    return load_data(data, seq_len=size.seq_len, validation_blocks=max(1, size.evaluation_tokens // size.seq_len))


def identify_text(data: Sequence[str], budget: Budget) -> str:
    """What changes when the text that a job trains on does: the hash of its files, or of what version it is.

    Raises:
        ExselError: a file that ``data`` names is not there.
    """
    if not data:
        return " ".join(f"{name} {version(name)}" for name in _PACKAGES) if budget == "gpu" else corpus_name()
    digest = hashlib.sha256()
    for path in find_files([name for name in data if is_local(name)]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _changed(size: Size, learning_rate: float | None, seq_len: int | None) -> Size:
    if learning_rate is not None:
        size = replace(size, learning_rate=learning_rate)
    if seq_len is not None:
        tokens = size.batch_size * size.seq_len
        if tokens % seq_len:
            raise ValueError(f"seq_len must divide the {tokens} tokens of a step, got {seq_len}")
        size = replace(size, seq_len=seq_len, batch_size=tokens // seq_len)
    return size


def _settings(job: Job, variant: ModelVariant, seed: int, size: Size) -> Settings:
    return Settings(
        variant=variant,
        seed=seed,
        learning_rate=size.learning_rate,
        model=str(_write_model(job.folder, size)),
        data=training_text(job),
        tokens=size.tokens,
        seq_len=size.seq_len,
        batch_size=size.batch_size,
        warmup_steps=size.steps // 10,
        token_learning_rate=variant.token_learning_rate or 1e-3,
        evaluations=size.evaluations,
        evaluation_blocks=max(1, size.evaluation_tokens // size.seq_len),
        device=job.device,
        dtype=size.dtype,
        compile=size.compile,
    )


def _write_model(folder: Path, size: Size) -> Path:
    """The size as a configuration file, which is how settings name a model that has no name."""
    path = folder / "models" / f"{size.layers}-layers-{size.width}-wide.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "model_type": "exsel",
        "num_hidden_layers": size.layers,
        "hidden_size": size.width,
        "num_attention_heads": size.width // size.head_dim,
        "head_dim": size.head_dim,
        "initializer_range": round(_INITIALIZER_RANGE * (_WIDTH / size.width) ** 0.5, 4),
    }
    write_json(path, values)
    return path


def _run_name(variant: ModelVariant, settings: Settings, size: Size) -> str:
    """Readable at its beginning, and different where anything differs but the folder that all lies in."""
    values = {**settings.to_dict(), **asdict(size), "model": None, "name": variant.name}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    name = re.sub(r"[^a-z0-9]+", "-", variant.name.lower()).strip("-")
    return f"{name}-lr{size.learning_rate:g}-t{size.seq_len}-seed{settings.seed}-{digest}"


def _build(variant: ModelVariant, settings: Settings, data: PackedData) -> ExselForCausalLM:
    model: ExselForCausalLM = build_model(settings, data)
    if variant.addition is not None:
        variant.addition(model)
    return model
