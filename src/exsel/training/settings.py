"""The settings of a training run: one frozen record, checked before any work starts, saved beside its results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from exsel.errors import ExselError
from exsel.files import read_json
from exsel.machine import can_compile
from exsel.model_sizes import SIZES
from exsel.models import ExselConfig
from exsel.models.conversion import exsel_values
from exsel.training.own_model import Factory, factory_name, find_factory, is_factory, source_sha256
from exsel.variants import Variant


@dataclass(frozen=True, kw_only=True)
class SizeDefaults:
    """The defaults of the settings that depend on the model's size."""

    tokens: int
    seq_len: int
    batch_size: int
    learning_rate: float


#: The defaults of fine-tuning.
FINE_TUNING = SizeDefaults(tokens=150 * 4096, seq_len=512, batch_size=8, learning_rate=1e-4)

#: The three large sizes have the paper's: 200,000 steps of 256 sequences of 2048 tokens, at its learning rates.
DEFAULTS: Mapping[str, SizeDefaults] = {
    "tiny": SizeDefaults(tokens=150 * 4096, seq_len=512, batch_size=8, learning_rate=3e-3),
    "25m": SizeDefaults(tokens=500_000_000, seq_len=1024, batch_size=32, learning_rate=1e-3),
    "124m": SizeDefaults(tokens=2_500_000_000, seq_len=1024, batch_size=64, learning_rate=6e-4),
    "0.7b": SizeDefaults(tokens=200_000 * 256 * 2048, seq_len=2048, batch_size=256, learning_rate=5e-4),
    "1.4b": SizeDefaults(tokens=200_000 * 256 * 2048, seq_len=2048, batch_size=256, learning_rate=4e-4),
    "2.7b": SizeDefaults(tokens=200_000 * 256 * 2048, seq_len=2048, batch_size=256, learning_rate=3e-4),
}


#: Compiling takes as long as some hundred steps of the tiny model on a CPU, and makes each a tenth faster.
COMPILED_STEPS = 500


def schedule(steps: int) -> dict[str, Any]:
    """The settings that depend on the number of steps, where nothing else is asked for."""
    return {
        "warmup_steps": min(2000, steps // 20),
        "save_every": max(1, min(500, steps // 5)),
        "compile": steps >= COMPILED_STEPS and can_compile(),
    }


def with_defaults(said: Mapping[str, Any], context: int | None = None) -> dict[str, Any]:
    """Values of :class:`Settings`: what is said, with ``device``, and for the rest the defaults of the model's size.

    A model that is no name of :data:`DEFAULTS` has those of ``tiny``; one that exists has those of fine-tuning, in
    sequences of the ``context`` that it was made for at most.
    """
    model = said.get("model")
    size = DEFAULTS.get(model if isinstance(model, str) else "tiny", DEFAULTS["tiny"])
    if said.get("source") is not None:
        size = replace(FINE_TUNING, seq_len=min(FINE_TUNING.seq_len, context or FINE_TUNING.seq_len))
    values = {**asdict(size), "dtype": "bfloat16" if said["device"] == "cuda" else "float32", **said}
    steps = values["tokens"] // max(1, values["batch_size"] * values["seq_len"])
    return {**schedule(steps), **values}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training run.

    Args:
        variant: which mechanisms the model has; a ``source`` that has mechanisms keeps its own. Its learning rates are
            the concern of what plans the runs.
        seed: seed of the initial weights and of the order of the blocks.
        learning_rate: peak learning rate, after the warm-up; it falls along a cosine to a tenth.
        model: name in :data:`exsel.models.SIZES`; path to a transformers configuration, or its dictionary; or a
            function that builds a model, itself or as ``package.module:name`` or ``file.py:name`` (see
            :mod:`exsel.training.own_model`). With ``source``, equal to it.
        source: folder or hub name of a model to fine-tune; ``None``: a new model.
        train: ``"all"`` parameters, or only the ``"new"`` ones that the mechanisms add to an existing model.
        data, text_field, tokenizer, seq_len, pack: see :func:`exsel.data.load_data`.
        tokens: training tokens; the run takes whole steps of ``batch_size`` · ``seq_len``.
        batch_size: sequences a step.
        accumulation: micro-batches a step.
        warmup_steps: steps in which the learning rate rises.
        weight_decay: weight decay of matrices.
        token_learning_rate: peak learning rate of the mechanisms' parameters that act on tokens (w, u, γ).
        position_learning_rate: peak learning rate of the positional terms' coefficient (a).
        evaluations: points of the validation curve; the last is the final loss.
        evaluation_blocks: number of validation blocks, and of the blocks of each evaluation set.
        evaluation_sets: by name, data (as one value of ``data``) on which the trained model is evaluated too.
        passkey: lengths of the texts in tokens in which the trained model looks for a key; see
            :func:`exsel.evaluation.passkey`.
        tasks: names of tasks of lm-evaluation-harness that the trained model is asked; see `exsel.evaluation.tasks`.
        save_every: steps between checkpoints; 0: only at the end and when interrupted.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        dtype: of the computation, ``"float32"`` or ``"bfloat16"`` (autocast; the weights stay float32).
        compile: whether the layers are compiled.
        shard: whether several processes divide the model among them (FSDP2), or each has a copy.
        activation_checkpointing: whether the backward pass computes each layer's activations anew.
        report_to: loggers of transformers' Trainer.

    Raises:
        ExselError: a value or a combination that cannot work.
    """

    variant: Variant
    seed: int
    learning_rate: float
    model: str | Mapping[str, Any] | Factory
    source: str | None = None
    train: Literal["all", "new"] = "all"
    data: tuple[str, ...] = ()
    text_field: str = "text"
    tokenizer: str = "bytes"
    pack: Literal["concat", "isolate"] = "concat"
    tokens: int
    seq_len: int
    batch_size: int
    accumulation: int = 1
    warmup_steps: int
    weight_decay: float = 0.1
    token_learning_rate: float = 1e-3
    position_learning_rate: float = 1e-3
    evaluations: int = 12
    evaluation_blocks: int = 32
    evaluation_sets: Mapping[str, str] = field(default_factory=dict)
    passkey: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    save_every: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = True
    shard: bool = False
    activation_checkpointing: bool = False
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.train not in ("all", "new"):
            raise ExselError(f"--train must be all or new, got {self.train!r}")
        if self.train == "new" and self.source is None:
            raise ExselError("--train new belongs to --from: in a new model every parameter is new")
        for name in ("tokens", "seq_len", "batch_size", "accumulation", "evaluations", "evaluation_blocks"):
            if getattr(self, name) < 1:
                raise ExselError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ExselError(f"--accumulation {self.accumulation} must divide --batch-size {self.batch_size}")
        for name in ("learning_rate", "token_learning_rate", "position_learning_rate"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                flag = name.replace("learning_rate", "lr").replace("_", "-")
                raise ExselError(f"--{flag} must be a positive number, got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ExselError(f"--weight-decay must be 0 or a positive number, got {self.weight_decay}")
        if self.save_every < 0:
            raise ExselError(f"--save-every must be 0 (only at the end) or more, got {self.save_every}")
        if self.steps < 1:
            raise ExselError(
                f"--tokens {self.tokens} is less than one step of {self.batch_size} × {self.seq_len} = "
                f"{self.tokens_per_step} tokens: give more tokens, or a smaller --batch-size or --seq-len"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ExselError(f"--warmup-steps must lie between 0 and the {self.steps} steps, got {self.warmup_steps}")
        if not 0 <= self.seed < 2**32:
            raise ExselError(f"a seed must lie between 0 and 2**32 - 1, got {self.seed}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step trains on."""
        return self.batch_size * self.seq_len

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.tokens // self.tokens_per_step

    @property
    def micro_batch_size(self) -> int:
        """Sequences of one forward pass."""
        return self.batch_size // self.accumulation

    def evaluation_steps(self) -> list[int]:
        """The steps after which the validation loss is taken, evenly spread; the last is the last step."""
        count = min(self.evaluations, self.steps)
        return [round(self.steps * (index + 1) / count) for index in range(count)]

    @property
    def model_name(self) -> str:
        """The model in a word: as it was named, or the type of its configuration, or the function that builds it."""
        if isinstance(self.model, str):
            return self.model
        return str(self.model.get("model_type")) if isinstance(self.model, Mapping) else factory_name(self.model)

    @property
    def factory(self) -> Factory | None:
        """The function that builds the model, if that is how it is named."""
        if isinstance(self.model, str):
            return find_factory(self.model) if is_factory(self.model) else None
        return None if isinstance(self.model, Mapping) else self.model

    @property
    def is_decoder(self) -> bool:
        """Whether the model is exsel's own decoder, also as a configuration of another type that it reproduces."""
        if self.factory is not None:
            return False
        if self.config_values.get("model_type", ExselConfig.model_type) == ExselConfig.model_type:
            return True
        try:
            exsel_values(self.config_values)
        except ExselError:  # another type, or an option that the decoder does not have
            return False
        return True

    @cached_property
    def config_values(self) -> Mapping[str, Any]:
        """The configuration of the model's size, file or dictionary; a file is read once."""
        if isinstance(self.model, Mapping):
            return self.model
        return SIZES[self.model_name] if self.model in SIZES else _read_config(self.model_name)

    def model_config(self, vocab_size: int, eos_token_id: int | None) -> ExselConfig:
        """The configuration of the run's model, if it :attr:`is_decoder`."""
        values = self.config_values if self.model_name in SIZES else exsel_values(self.config_values)
        tokens = {"vocab_size": vocab_size, "eos_token_id": eos_token_id, "bos_token_id": None, "pad_token_id": None}
        try:
            config: ExselConfig = ExselConfig.from_dict(
                {**values, **tokens, "max_position_embeddings": self.seq_len, **self.variant.mechanisms}
            )
        except (ValueError, TypeError) as error:
            raise ExselError(f"--model {self.model_name}: {error}") from error
        return config

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; the variant as its name and its mechanisms."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["model"] = self.model_name if callable(self.model) else self.model
        values |= {"variant": self.variant.name, **self.variant.to_dict()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def model_sha256(self) -> str | None:
        """SHA-256 of the configuration that ``source`` or ``model`` names, in hexadecimal; ``None``: on the hub.

        Of a function that builds the model, of the file that defines it; ``None``: there is none.
        """
        if self.source is None and (factory := self.factory) is not None:
            return source_sha256(factory)
        if self.source is None:
            values: Any = self.config_values
        elif (path := Path(self.source)).exists():
            values = read_json(_config_file(path))
        else:
            return None
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _config_file(path: Path) -> Path:
    """The configuration file: ``path`` itself, or ``config.json`` in it if it is a folder."""
    return path / "config.json" if path.is_dir() else path


def _read_config(model: str) -> dict[str, Any]:
    """The dictionary of a transformers configuration file, or of the one in a folder."""
    path = _config_file(Path(model))
    if not path.is_file():
        raise ExselError(
            f"--model {model}: neither a size ({', '.join(SIZES)}) nor a transformers configuration file, nor a "
            "function as package.module:name or file.py:name"
        )
    values = read_json(path)
    if not isinstance(values, dict):
        raise ExselError(f"--model {model}: not a transformers configuration, which is a JSON object")
    return values


def one_a_variant(runs: Iterable[Settings]) -> list[Settings]:
    """The first run of each variant; the others have the same model, and another seed or learning rate."""
    first: dict[str, Settings] = {}
    for run in runs:
        first.setdefault(run.variant.name, run)
    return list(first.values())


def check_loggers(names: Sequence[str]) -> None:
    """Check that transformers knows the loggers and that they are installed."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ExselError(f"--report-to {name}: no such logger; choose from {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise ExselError(f"--report-to {name}: it is not installed: pip install {name.replace('_', '-')}")
