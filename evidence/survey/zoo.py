"""The zoo: a small model of every model type in the installed transformers, on the CPU, with inputs to call it on.

Nothing is downloaded: a model is built from its type's default configuration, made small, with random weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from evidence.survey.zoo_configs import small_config
from evidence.survey.zoo_inputs import inputs_of
from evidence.survey.zoo_table import REFUSED
from evidence.survey.zoo_weights import randomise

Family = Literal["decoder", "encoder", "encoder-decoder", "vision", "audio", "multimodal", "other"]

# The heads that a type may have, best first. Every other mapping follows, bare backbones last.
_HEADS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_MAPPING",
)
_LAST_HEADS = ("MODEL_FOR_PRETRAINING_MAPPING", "MODEL_FOR_BACKBONE_MAPPING")


class NotBuilt(Exception):  # noqa: N818 - an answer, not a fault
    """A model type that the zoo does not build; the message is the reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A small model and a batch to call it on: ``output = specimen.model(**specimen.inputs)``.

    Args:
        model_type: a key of transformers' ``CONFIG_MAPPING``
        model: in eval mode, float32, on the CPU, with random weights that hide nothing
        inputs: a batch of two different rows, nothing padded
        can_generate: a language model, decoder-only or encoder-decoder, that generates with a cache
        family: what kind of model it is
    """

    model_type: str
    model: PreTrainedModel
    inputs: dict[str, Any]
    can_generate: bool
    family: Family


def model_types() -> list[str]:
    """Every model type in the installed transformers, sorted; sub-configurations of other types included."""
    return sorted(CONFIG_MAPPING_NAMES)


def build_small_model(model_type: str, *, seed: int = 0) -> Specimen:
    """Build a small model of one type, with inputs; the same seed gives the same weights and inputs.

    Args:
        model_type: one of ``model_types()``
        seed: for weights and inputs; the global random state is left as it was

    Raises:
        NotBuilt: the type is no model of its own, needs a package that is not installed, or transformers refused it
        KeyError: transformers does not know the type
    """
    if model_type not in CONFIG_MAPPING_NAMES:
        raise KeyError(
            f"transformers has no model type {model_type!r}; the types are in evidence.survey.zoo.model_types()"
        )
    if model_type in REFUSED:
        raise NotBuilt(REFUSED[model_type])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = small_config(model_type)
            model_class = _model_class(model_type, config)
            model = model_class._from_config(config, dtype=torch.float32).float().eval()
            generator = torch.Generator().manual_seed(seed)
            randomise(model, generator)
            inputs = inputs_of(model, model_type, generator)
            with torch.no_grad():
                model(**inputs)
        except NotBuilt:
            raise
        except Exception as error:  # any of 800 types may fail in any way: the way is the answer
            raise NotBuilt(_reason(error)) from error
    family = _family(model, inputs)
    return Specimen(
        model_type=model_type,
        model=model,
        inputs=inputs,
        can_generate=_can_generate(model, inputs, family),
        family=family,
    )


def _model_class(model_type: str, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The best head of a type, see ``_HEADS``."""
    order = list(_HEADS)
    if config.is_encoder_decoder:  # its CAUSAL_LM is the decoder alone
        order.remove("MODEL_FOR_CAUSAL_LM_MAPPING")
        order.insert(order.index("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING") + 1, "MODEL_FOR_CAUSAL_LM_MAPPING")
    elif hasattr(config, "is_decoder") and not config.is_decoder:  # an encoder that may be used as a decoder
        order.insert(0, order.pop(2))
    parts = {type(value) for value in vars(config).values() if isinstance(value, PretrainedConfig)}
    others = sorted(n for n in vars(modeling_auto) if n.startswith("MODEL_") and n.endswith("_MAPPING"))
    order += [n for n in others if n not in order and n not in _LAST_HEADS]
    order += [n for n in others if n in _LAST_HEADS]
    for name in order:
        classes = getattr(modeling_auto, name).get(type(config), None)
        if classes is None:
            continue
        model_class: type[PreTrainedModel] = classes[0] if isinstance(classes, tuple) else classes
        if model_class.config_class not in parts:  # else it is the head of a part alone
            return model_class
    raise NotBuilt(f"not a model of its own{_owners(model_type)}")


def _owners(model_type: str) -> str:
    """``: part of X, Y`` for a type that is a sub-configuration of other types."""
    own = CONFIG_MAPPING[model_type]
    owners = [
        t for t in model_types() if t != model_type and own in getattr(CONFIG_MAPPING[t], "sub_configs", {}).values()
    ]
    return f": part of {', '.join(owners[:3])}" if owners else ""


def _reason(error: Exception) -> str:
    """What an exception says, in one line."""
    chain: Iterator[str] = (line.strip() for line in str(error).splitlines())
    lines = [line for line in chain if line]
    if isinstance(error, ImportError):
        text = " ".join(lines)
        for package in ("timm", "detectron2", "natten", "scipy", "torchaudio"):
            if package in text:
                return f"needs {package}"
    said = re.sub(r"'?/[^\s'>]+'?", "…", " ".join(lines))  # no reader has the files of this machine
    return f"{type(error).__name__}: {said[:300]}"


def _family(model: PreTrainedModel, inputs: dict[str, Any]) -> Family:
    text = "input_ids" in inputs
    image = any("pixel" in name or "image" in name for name in inputs)
    audio = any(name.startswith(("input_features", "input_values", "audio")) for name in inputs)
    if text + image + audio > 1:
        return "multimodal"
    if image:
        return "vision"
    if audio:
        return "audio"
    if not text:
        return "other"
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    return "decoder" if model.can_generate() else "encoder"


def _can_generate(model: PreTrainedModel, inputs: dict[str, Any], family: Family) -> bool:
    """Whether ``generate`` with a cache makes sense for a model."""
    if not model.can_generate() or family not in ("decoder", "encoder-decoder", "multimodal", "audio"):
        return False
    return "input_ids" in inputs or "decoder_input_ids" in inputs
