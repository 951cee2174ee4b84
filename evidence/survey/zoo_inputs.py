"""Dummy inputs for the zoo's models, chosen by the names of their forward's parameters."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from evidence.survey.zoo_configs import FIRST_TOKEN, LAST_TOKEN
from evidence.survey.zoo_inputs_table import INPUTS

BATCH = 2
TOKENS = 7  # differs from the batch, the heads (4, 2) and the head's width (16)
TARGET_TOKENS = 5  # of a decoder, in an encoder-decoder
SAMPLES = 3000  # of audio at whatever rate
FRAMES = 40  # of a spectrogram
GRID = (4, 6)  # an image's patches, where images come cut into patches


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
    wanted = [
        name
        for name, p in parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and (p.default is p.empty or name == model.main_input_name)
    ]
    if _getters(model, "image") and {"input_ids", "pixel_values"} <= set(parameters):
        wanted = list(dict.fromkeys(["input_ids", "pixel_values", *wanted]))
    inputs: dict[str, Any] = {}
    takes_images = special.get("pixel_values", ()) is not None
    if takes_images and ("image_grid_thw" in parameters or "grid_thw" in parameters):
        inputs |= maker.patches(wanted, parameters)
    for name in wanted:
        if name not in special and name not in inputs:
            inputs[name] = maker.make(name)
    for name, given in special.items():
        if given is not None:
            inputs[name] = maker.given(*given)
    if not inputs and "input_ids" in parameters:
        inputs["input_ids"] = maker.make("input_ids")
    if "input_ids" not in special:
        inputs |= maker.with_placeholders(model, inputs, parameters)
    if model.config.is_encoder_decoder and "decoder_input_ids" in parameters and "decoder_input_ids" not in special:
        inputs["decoder_input_ids"] = maker.tokens(BATCH, TARGET_TOKENS)
    if "input_ids" in inputs and "attention_mask" in parameters and "attention_mask" not in special:
        inputs["attention_mask"] = torch.ones(inputs["input_ids"].shape[:2], dtype=torch.long)
    return inputs


# The input that carries each kind of content, and the names that the token in whose place it goes may have.
_CONTENT = {
    "image": ("pixel_values", ("image_token_id", "image_token_index", "media_placeholder_token_id")),
    "audio": ("input_features", ("audio_token_id", "audio_token_index")),
}


def _getters(model: PreTrainedModel, kind: str) -> list[Any]:
    """The methods of a model and of its base that turn an input into the language model's features."""
    return [getattr(m, f"get_{kind}_features") for m in (model, model.base_model) if hasattr(m, f"get_{kind}_features")]


def _placeholder(config: PretrainedConfig, kind: str) -> int | None:
    for name in _CONTENT[kind][1]:
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    return None


def _rows(features: Any) -> int:
    """How many features there are in what a getter returned, in whatever form."""
    if isinstance(features, Tensor):
        return math.prod(features.shape[:-1])
    if isinstance(features, (list, tuple)):
        return sum(_rows(part) for part in features)
    pooled = getattr(features, "pooler_output", None)
    return _rows(features.last_hidden_state if pooled is None else pooled)


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

    def patches(self, wanted: list[str], parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        """Images already cut into patches, two of them in one row, as Qwen2-VL and its heirs take them."""
        grid = torch.tensor([[1, *GRID]] * BATCH)
        width = self.size("patch_size", 8) ** 2 * self.size("num_channels", self.size("in_channels", 3))
        width *= self.size("temporal_patch_size", self.size("patch_temporal", 1))
        name = "hidden_states" if "hidden_states" in wanted else "pixel_values"
        grid_name = "grid_thw" if "grid_thw" in parameters else "image_grid_thw"
        return {name: self.normal(BATCH * GRID[0] * GRID[1], width), grid_name: grid}

    def with_placeholders(
        self, model: PreTrainedModel, inputs: dict[str, Any], parameters: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Text around as many placeholder tokens as the model makes features of one image or recording."""
        spans: list[Tensor] = []
        for kind, (carrier, _) in _CONTENT.items():
            token, getters = _placeholder(self.config, kind), _getters(model, kind)
            if token is None or not getters or carrier not in inputs:
                continue
            known = {name: p for getter in getters for name, p in inspect.signature(getter).parameters.items()}
            taken = {name: value for name, value in inputs.items() if name in known}
            for name, p in known.items():  # what older versions want to be told although the configuration knows it
                if name not in taken and p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD:
                    taken |= {name: self.size(name, None)} if self.size(name, None) is not None else {}
            with torch.no_grad():
                features = getters[0](**taken)
            spans.append(torch.full((BATCH, _rows(features) // BATCH), token))
        if not spans:
            return {}
        length = TOKENS + sum(span.shape[1] for span in spans)
        after = TOKENS - 3 + (length == 16)  # never as many tokens as a head is wide
        ids = torch.cat([self.tokens(BATCH, 3), *spans, self.tokens(BATCH, after)], dim=1)
        made = {"input_ids": ids}
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in parameters and "pixel_values" in inputs:
                made[name] = torch.eq(ids, _placeholder(self.config, "image") or 0).long()
        return made

    def given(self, kind: str, *shape: Any) -> Any:
        """An input that the table describes."""
        match kind:
            case "normal":
                return self.normal(*shape)
            case "tokens":
                return self.tokens(*shape)
            case "boxes":
                return self.tokens(*shape, 4).sort(dim=-1).values
            case "unit_boxes":
                return torch.rand((*shape, 4), generator=self.generator).sort(dim=-1).values
            case "around":
                token, count = shape
                between = torch.full((BATCH, count), token)
                return torch.cat([self.tokens(BATCH, 3), between, self.tokens(BATCH, TOKENS - 3)], dim=1)
            case "grid":
                rows, columns = shape
                return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1).expand(BATCH, -1, -1)
            case "span":
                length, count = shape
                mask = torch.zeros(BATCH, length, dtype=torch.bool)
                mask[:, 1 : 1 + count] = True
                return mask
            case "patches":  # each with its row and column, from 1, before its pixels
                count, width = shape
                where = torch.stack([torch.arange(count) // 3 + 1, torch.arange(count) % 3 + 1], dim=-1).float()
                return torch.cat([where.expand(BATCH, -1, -1), self.normal(BATCH, count, width)], dim=-1)
            case "frames":
                return self.normal(BATCH, FRAMES, self.size("num_mel_bins", 80))
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
        """Ordinary tokens: no special one among them, and none twice in a row of them."""
        count = LAST_TOKEN - FIRST_TOKEN
        if shape[-1] > count:
            return torch.randint(FIRST_TOKEN, LAST_TOKEN, shape, generator=self.generator)
        drawn = torch.rand(*shape[:-1], count, generator=self.generator)
        return drawn.argsort(dim=-1)[..., : shape[-1]] + FIRST_TOKEN

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        side = self.size("image_size", 48)
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
