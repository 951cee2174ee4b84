"""One transformer block, and a whole training step, of our model: with each mechanism, ours and as written by hand."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exsel.bench.attention import normalize_form
from exsel.bench.cases import GROUPS, Case
from exsel.bench.measuring import Contender, Work, check_compiler
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.model_sizes import SIZES
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.models.modeling import ExselAttention
from exsel.nn import Temperature
from exsel.training.training_step import training_step
from exsel.variants import BASELINE

#: *naive*: what is written by hand, around stock attention.
VARIANTS = (BASELINE, "exclusive", "exclusive+selective", "naive exclusive", "naive exclusive+selective")

#: Bytes: small, so that the output layer does not hide what attention costs.
VOCABULARY = 259
#: The size of a training step, where nothing else is said, and its tokens in all.
STEPS = {"cpu": ("tiny", 4096), "cuda": ("1.4b", 8192)}
#: Bytes a parameter: the weight, its gradient and the optimiser's two moments in float32, and room for activations.
BYTES_PER_PARAMETER = 24


class PlainExclusive(nn.Module):
    """The two published lines, in the place of :class:`exsel.nn.Exclusive`."""

    def forward(self, y: Tensor, own_value: Tensor) -> Tensor:
        """z."""
        return normalize_form(y, own_value)


class PlainTemperature(Temperature):
    """Its definition operator by operator."""

    def forward(self, projection: Tensor, position: Tensor, **_: Tensor | None) -> Tensor:  # type: ignore[override]
        """τ ``[B, H, T]``."""
        assert self.weight is not None
        assert self.position_logit is not None
        token = torch.tanh(torch.einsum("bhtd,hd->bht", F.gelu(projection), self.weight))
        growth = torch.sigmoid(self.position_logit)[None, :, None] * torch.log(position.float())[:, None, :]
        return token + 1 + growth


def build(variant: str, size: str, device: torch.device, *, layers: int | None = None) -> ExselForCausalLM:
    """A model of a named size, of a name of :data:`VARIANTS`; its weights are those of every other variant.

    It begins on its device, where drawing the weights of a billion parameters takes no time.
    """
    values = dict(SIZES[size])
    if layers is not None:
        values["num_hidden_layers"] = layers
    config = ExselConfig(
        vocab_size=VOCABULARY,
        **values,
        exclusive=ExclusiveConfig() if "exclusive" in variant else None,
        selective=SelectiveConfig() if "selective" in variant else None,
    )
    is_plain = variant == BASELINE or variant.startswith("naive")
    if is_plain:
        config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with device:
        model = ExselForCausalLM(config)
    for layer in model.model.layers if is_plain else ():
        attention = layer.self_attn
        assert isinstance(attention, ExselAttention)
        if attention.exclusive is not None:
            attention.exclusive = PlainExclusive()  # type: ignore[assignment]
        for name, temperature in attention.temperatures.items():
            heads: Any = temperature.num_heads
            with device:
                attention.temperatures[name] = PlainTemperature(heads, attention.head_dim)
    return model


def context_length(size: str) -> int:
    """The tokens of a sequence that a model of a size trains on."""
    length: int = ExselConfig(**SIZES[size]).max_position_embeddings
    return length


def parameter_count(size: str) -> int:
    """Of the layers of a size, to a thousandth."""
    values = SIZES[size]
    width, heads = values["hidden_size"], values["num_attention_heads"] * values["head_dim"]
    count: int = values["num_hidden_layers"] * (4 * width * heads + 8 * width * width)
    return count


def block_contenders(case: Case, ways: Collection[str] = GROUPS) -> list[Contender]:
    """Forward and backward of one block, by variant, eager or compiled or both."""
    size = case.shape.name
    shape = (case.batch, case.tokens, SIZES[size]["hidden_size"])
    hidden = torch.randn(shape, device=case.device, dtype=case.dtype, requires_grad=True)
    gradient = torch.randn_like(hidden)
    position = torch.arange(case.tokens, device=case.device).unsqueeze(0)

    def work(variant: str, group: str) -> Work:
        model = build(variant, size, case.device, layers=1).to(case.dtype)
        layer = _compiled(model.model.layers, group)[0]
        arguments: dict[str, Any] = {
            "position_embeddings": model.model.rotary_emb(hidden, position_ids=position),
            "position_ids": position,
            "sequence_position": position + 1,
            "attention_mask": None,
        }
        return Work(forward=lambda: layer(hidden, **arguments), inputs=(hidden, *layer.parameters()), gradient=gradient)

    return _contenders(work, ways)


def step_contenders(case: Case, ways: Collection[str] = GROUPS) -> list[Contender]:
    """A training step by variant, eager or compiled or both.

    As ``exsel train`` does it: forward, backward, clipping, optimiser. Weights are float32, with autocast where the
    dtype is lower.
    """
    ids = torch.randint(3, VOCABULARY, (case.batch, case.tokens), device=case.device)
    weights = SharedWeights()

    def work(variant: str, group: str) -> Work:
        model = build(variant, case.shape.name, case.device)
        weights.share(model)
        _compiled(model.model.layers, group)
        optimizer = weights.optimizer(model)

        def step() -> Tensor:
            with torch.autocast(case.device.type, case.dtype, enabled=case.dtype != torch.float32):
                loss: Tensor = model(input_ids=ids, labels=ids).loss
            return training_step(loss, model, optimizer)

        return Work(forward=step, name="step")

    return _contenders(work, ways)


class SharedWeights:
    """The first model's parameters and their optimiser's state, which all others share: one fits, five may not."""

    def __init__(self) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._optimizers: list[torch.optim.Optimizer] = []

    def share(self, model: ExselForCausalLM) -> None:
        """Put the shared parameters into the model; those that it alone has stay its own."""
        for name, parameter in list(model.named_parameters()):
            shared = self._parameters.setdefault(name, parameter)
            if shared.shape == parameter.shape and shared is not parameter:
                module_name, _, own_name = name.rpartition(".")
                setattr(model.get_submodule(module_name), own_name, shared)
        model.tie_weights()  # the output layer still had the token embedding that was its own

    def optimizer(self, model: nn.Module, lr: float = 1e-4) -> torch.optim.Optimizer:
        """One that updates the model's parameters, with the shared state."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
        for other in self._optimizers:
            for parameter in model.parameters():
                if parameter in other.state:
                    optimizer.state[parameter] = other.state[parameter]
        self._optimizers.append(optimizer)
        return optimizer


def _compiled(layers: Any, group: str) -> Any:
    """The layers, each compiled if the group asks for it."""
    if group == "compiled":
        check_compiler()
        for layer in layers:
            layer.compile(dynamic=False)
    return layers


def _contenders(work: Callable[[str, str], Work], ways: Collection[str]) -> list[Contender]:
    """The variants in each way, the baseline in front; each is divided by the baseline of its own way."""
    return [
        Contender(name=variant, group=group, floor=(group, BASELINE), prepare=partial(work, variant, group))
        for group in GROUPS
        if group in ways
        for variant in VARIANTS
    ]
