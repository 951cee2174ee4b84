"""Dummy inputs for the zoo's models, chosen by the names of their forward's parameters."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from exsel.upgrade.zoo_configs import FIRST_TOKEN, LAST_TOKEN
from exsel.upgrade.zoo_table import INPUTS

BATCH = 2
TOKENS = 7  # differs from the batch, the heads (4, 2) and the head's width (16)
TARGET_TOKENS = 5  # of a decoder, in an encoder-decoder
SAMPLES = 3000  # of audio at whatever rate
FRAMES = 30  # of a spectrogram


def inputs_of(model: PreTrainedModel, model_type: str, generator: torch.Generator) -> dict[str, Any]:
    """A batch of two different rows for one model, so that ``model(**inputs)`` runs all of it.

    Args:
        model: a small model from the zoo
        model_type: its type
        generator: where tokens, pixels and samples come from

    Raises:
        NotImplementedError: the model requires an input that the zoo does not know
    """
    special = INPUTS.get(model_type, {})
    maker = _Maker(model.config, generator)
    parameters = inspect.signature(model.forward).parameters
    required = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    wanted = [n for n in parameters if n in required or n == model.main_input_name]
    inputs: dict[str, Any] = {}
    for name in wanted:
        if name not in special:
            inputs[name] = maker.make(name)
    for name, given in special.items():
        if given is not None:
            inputs[name] = maker.given(*given)
    if not inputs and "input_ids" in parameters:
        inputs["input_ids"] = maker.make("input_ids")
    if model.config.is_encoder_decoder and "decoder_input_ids" in parameters and "decoder_input_ids" not in special:
        inputs["decoder_input_ids"] = maker.tokens(BATCH, TARGET_TOKENS)
    if "input_ids" in inputs and "attention_mask" in parameters and "attention_mask" not in special:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


class _Maker:
    """Makes inputs by name, with sizes from a configuration."""

    def __init__(self, config: PretrainedConfig, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator

    def make(self, name: str) -> Tensor:
        """The input that a parameter's name stands for."""
        if name in ("input_ids", "text_input_ids", "qformer_input_ids"):
            return self.tokens(BATCH, TOKENS)
        if name == "pixel_values":
            return self.normal(BATCH, *self.image())
        if name == "pixel_values_videos":
            return self.normal(BATCH, self.size("num_frames", 2), *self.image())
        if name == "input_values":
            return self.normal(BATCH, SAMPLES)
        if name == "input_features":
            return self.normal(BATCH, self.size("num_mel_bins", 80), FRAMES)
        if name == "input_features_mask":
            return torch.ones(BATCH, FRAMES, dtype=torch.long)
        if name in ("inputs_embeds", "hidden_states"):
            return self.normal(BATCH, TOKENS, self.size("hidden_size", 64))
        raise NotImplementedError(f"the zoo knows no input {name!r}")

    def given(self, kind: str, *shape: Any) -> Any:
        """An input that the table describes."""
        match kind:
            case "normal":
                return self.normal(*shape)
            case "tokens":
                return self.tokens(*shape)
            case "ones" | "zeros":
                return torch.full(shape, int(kind == "ones"), dtype=torch.long)
            case "true" | "false":
                return torch.full(shape, kind == "true", dtype=torch.bool)
            case "tensor":
                return torch.tensor(shape[0])
            case "value":
                return shape[0]
        raise ValueError(f"the zoo's table names an unknown kind of input {kind!r}")

    def tokens(self, *shape: int) -> Tensor:
        """Ordinary tokens: no special one among them."""
        return torch.randint(FIRST_TOKEN, LAST_TOKEN, shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        side = self.size("image_size", 24)
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        return self.size("num_channels", self.size("in_channels", 3)), height, width

    def size(self, name: str, default: Any) -> Any:
        """A field of the configuration or, failing that, of the first of its parts that has it."""
        for config in (self.config, *_parts(self.config)):
            value = getattr(config, name, None)
            if value is not None:
                return value
        return default


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The sub-configurations, those of vision and audio first."""
    parts = {n: v for n, v in vars(config).items() if isinstance(v, PretrainedConfig)}
    return [parts[n] for n in sorted(parts, key=lambda n: ("text" in n, n))]
