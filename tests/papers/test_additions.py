from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.papers import additions
from evidence.papers.additions import LearnedConstant, OutputGate, ScalableSoftmax, Sinks, YarnTemperature
from exsel import ExclusiveConfig, SelectiveConfig
from exsel.models import ExselConfig, ExselForCausalLM
from exsel.models.modeling import ExselAttention
from exsel.training.mechanism_parameters import scalar_names

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 8, 11

Addition = Callable[[ExselForCausalLM], None]
ADDITIONS: dict[str, Addition] = {
    "one sink": functools.partial(additions.add_sinks, count=1),
    "four sinks": functools.partial(additions.add_sinks, count=4),
    "masked diagonal": additions.mask_diagonal,
    "output gate": additions.add_output_gate,
    "common direction": additions.remove_common_direction,
    "full width": additions.exclude_full_width,
    "token strength": additions.add_token_strength,
    "constant": additions.add_constant_temperature,
    "Scalable-Softmax": additions.add_scalable_softmax,
    "YaRN": additions.add_yarn_temperature,
}
MECHANISMS = {
    "plain": {},
    "exclusive": {"exclusive": ExclusiveConfig()},
    "exclusive, learned": {"exclusive": ExclusiveConfig(strength="learned")},
}
each_addition = pytest.mark.parametrize("name", ADDITIONS)


def build(name: str, **mechanisms: ExclusiveConfig | SelectiveConfig) -> ExselForCausalLM:
    torch.manual_seed(0)
    config = ExselConfig(
        vocab_size=17,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=DIM,
        max_position_embeddings=16,
        initializer_range=0.2,
        **mechanisms,
    )
    model = ExselForCausalLM(config)
    ADDITIONS[name](model)
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in model.named_parameters():
        if "factor" in parameter_name or "strength" in parameter_name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.double()


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(17, (2, TOKENS), generator=torch.Generator().manual_seed(seed))


class Layer:
    """What goes into the first layer's attention and what comes out of it, and its parts."""

    def __init__(self, model: ExselForCausalLM) -> None:
        self.attention: ExselAttention = model.model.layers[0].self_attn  # type: ignore[assignment]
        seen: dict[str, Tensor] = {}
        self.attention.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
        self.attention.register_forward_hook(lambda _, inputs, output: seen.update(output=output[0]))
        with torch.no_grad():
            model(input_ids=tokens())
            positions = torch.arange(TOKENS).unsqueeze(0)
            self.cos, self.sin = model.model.rotary_emb(seen["x"], position_ids=positions)
        self.x, self.output = seen["x"], seen["output"]

    def heads(self, projection: str) -> Tensor:
        return getattr(self.attention, projection)(self.x).unflatten(-1, (-1, DIM)).transpose(1, 2)

    def rotated(self, projection: str) -> Tensor:
        states = self.heads(projection)
        half = DIM // 2
        turned = torch.cat((-states[..., half:], states[..., :half]), -1)
        return states * self.cos + turned * self.sin


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query [D] over keys and values [S, D]."""
    if not len(keys):
        return torch.zeros(DIM, dtype=torch.float64)
    return torch.softmax(keys @ query / math.sqrt(DIM), 0) @ values


def without(y: Tensor, direction: Tensor, strength: float | Tensor = 1.0) -> Tensor:
    unit = direction / direction.norm()
    return y - strength * (y @ unit) * unit


@torch.no_grad()
def expected(name: str, layer: Layer) -> Tensor:
    """The layer's output, head by head and token by token."""
    attention = layer.attention
    query, key, value = layer.rotated("q_proj"), layer.rotated("k_proj"), layer.heads("v_proj")
    z = torch.zeros(2, TOKENS, HEADS, DIM, dtype=torch.float64)
    for batch in range(2):
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            for token in range(TOKENS):
                q = query[batch, head, token]
                last = token if name == "masked diagonal" else token + 1
                keys, values = key[batch, group, :last], value[batch, group, :last]
                own = value[batch, group, token]
                if "sink" in name:
                    sinks: Sinks = attention.exsel  # type: ignore[assignment]
                    keys = torch.cat((sinks.key[group], keys))
                    values = torch.cat((sinks.value[group], values))
                if name == "constant":
                    q = q * attention.temperatures["query"].factor[head]
                if name == "Scalable-Softmax":
                    q = q * attention.temperatures["query"].factor[head] * math.log(token + 1)
                if name == "YaRN":
                    q = q * (0.1 * math.log(max(token + 1, 4) / 4) + 1) ** 2
                y = attend(q, keys, values)
                if attention.exclusive is not None:
                    logit = attention.exclusive.strength_logit
                    y = without(y, own, 1.0 if logit is None else torch.tanh(logit[head]))
                if name == "common direction":
                    y = without(y, value[batch, group, : token + 1].mean(0))
                if name == "token strength":
                    weight = attention.exsel.strength_proj.weight[head]  # type: ignore[union-attr]
                    y = without(y, own, torch.tanh(layer.x[batch, token] @ weight))
                z[batch, token, head] = y
    mixed = z.flatten(-2)
    if name == "full width":
        for batch in range(2):
            for token in range(TOKENS):
                own = value[batch, :, token].repeat_interleave(HEADS // KV_HEADS, dim=0)
                mixed[batch, token] = without(mixed[batch, token], own.flatten())
    if name == "output gate":
        gate: OutputGate = attention.exsel  # type: ignore[assignment]
        mixed = mixed / (1 + torch.exp(-layer.x @ gate.gate_proj.weight.T))
    return mixed @ attention.o_proj.weight.T


@each_addition
@pytest.mark.parametrize("mechanisms", MECHANISMS)
def test_a_layer_computes_what_is_said(name: str, mechanisms: str) -> None:
    layer = Layer(build(name, **MECHANISMS[mechanisms]))  # type: ignore[arg-type]
    torch.testing.assert_close(layer.output, expected(name, layer), rtol=1e-10, atol=1e-12)


@each_addition
def test_no_token_sees_a_later_one(name: str) -> None:
    model = build(name, exclusive=ExclusiveConfig())
    before = tokens()
    after = before.clone()
    after[:, 6:] = (before[:, 6:] + 1) % 17
    with torch.no_grad():
        logits, others = model(input_ids=before).logits, model(input_ids=after).logits
    torch.testing.assert_close(logits[:, :6], others[:, :6], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(logits[:, 6:], others[:, 6:])


@each_addition
def test_every_parameter_learns(name: str) -> None:
    model = build(name)
    added = {key for key, _ in model.named_parameters()} - {
        key for key, _ in ExselForCausalLM(model.config).named_parameters()
    }
    if name not in ("masked diagonal", "common direction", "full width", "YaRN"):
        assert added
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@each_addition
def test_other_attention_functions_compute_the_same(name: str) -> None:
    model = build(name, exclusive=ExclusiveConfig())
    with torch.no_grad():
        ours = model(input_ids=tokens()).logits
        model.set_attn_implementation("sdpa")
        theirs = model(input_ids=tokens()).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["four sinks", "masked diagonal"])
def test_selective_attention_keeps_its_temperatures(name: str) -> None:
    """Scales are cut and padded with what they scale: in plain attention they are done before."""
    model = build(name, selective=SelectiveConfig(position_init=0.4))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("temperatures.query.weight"):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        ours = model(input_ids=tokens()).logits
        model.set_attn_implementation("sdpa")
        theirs = model(input_ids=tokens()).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_what_masks_its_diagonal_gives_the_first_token_nothing() -> None:
    model = build("masked diagonal")
    mixed: list[Tensor] = []
    attention: ExselAttention = model.model.layers[0].self_attn  # type: ignore[assignment]
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    model(input_ids=tokens())
    assert mixed[0][:, 0].count_nonzero() == 0
    assert mixed[0][:, 1].count_nonzero() > 0


def test_a_sink_begins_as_one_more_token() -> None:
    model = build("four sinks")
    keys: list[Tensor] = []
    attention: ExselAttention = model.model.layers[0].self_attn  # type: ignore[assignment]
    attention.k_proj.register_forward_hook(lambda _, inputs, output: keys.append(output))
    model(input_ids=tokens())
    sinks: Sinks = attention.exsel  # type: ignore[assignment]
    # 64 and 352 normal numbers: their deviations are within 9% and 4% (one in three), here within three times that.
    assert float(sinks.key.detach().std()) == pytest.approx(float(keys[0].detach().std()), rel=0.3)


def test_what_begins_by_adding_nothing_learns_to() -> None:
    model = build("YaRN")
    additions.zero_output_projections(model)
    outputs = [layer.self_attn.o_proj.weight for layer in model.model.layers]  # type: ignore[union-attr]
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    for weight in outputs:
        assert weight.count_nonzero() == 0
        assert weight.grad.abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["one sink", "masked diagonal", "output gate", "common direction"])
def test_padding_is_refused(name: str) -> None:
    model = build(name)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(RuntimeError, match="whole sequences"):
        model(input_ids=tokens(), attention_mask=mask)


def test_the_mean_of_the_values_so_far() -> None:
    value = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    means = additions.running_mean(value)
    for token in range(5):
        torch.testing.assert_close(means[:, :, token], value[:, :, : token + 1].mean(2))
    assert additions.running_mean(value.bfloat16()).dtype == torch.float32


def test_temperatures_that_know_no_token_start_near_1() -> None:
    projection = torch.zeros(1, HEADS, 512, DIM)
    position = torch.arange(1, 513)
    assert torch.equal(LearnedConstant(HEADS)(projection), torch.ones(1, HEADS, 512))
    tau = ScalableSoftmax(HEADS, 512)(projection, position)
    # log n is log L − 1 on the mean up to Stirling's remainder, log(2πL) / 2L.
    assert float(tau.detach().mean()) == pytest.approx(1, abs=math.log(2 * math.pi * 512) / 1024 / (math.log(512) - 1))
    yarn = YarnTemperature(HEADS, 128)(projection, position)
    assert torch.equal(yarn[..., :128], torch.ones(1, HEADS, 128))
    assert yarn.shape == (1, HEADS, 512)
    assert float(yarn[0, 0, -1]) == pytest.approx((0.1 * math.log(4) + 1) ** 2)


def test_learned_temperatures_train_with_the_scalars() -> None:
    for name in ("constant", "Scalable-Softmax"):
        assert "model.layers.1.self_attn.temperatures.query.factor" in scalar_names(build(name))


def test_sinks_gates_and_the_softmax_are_those_of_any_dtype() -> None:
    """Under autocast queries and keys come in bfloat16 and the parameters in float32."""
    for name in ADDITIONS:
        model = build(name, exclusive=ExclusiveConfig()).float()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens(), labels=tokens()).loss
        exact = F.cross_entropy(
            model.double()(input_ids=tokens()).logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()
        )
        assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=2**-6), name
