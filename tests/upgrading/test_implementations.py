"""Every attention implementation that runs on the CPU, chosen before the upgrade or after it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

import exsel
from budget import assert_within_budget
from exsel import ExclusiveConfig
from upgrading.architectures import FLEX, IDS, VOCABULARY, assert_near, outputs, plain, upgrade, upgraded

pytestmark = pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")

IMPLEMENTATIONS = {
    "llama": ("sdpa", "flex_attention", "exsel"),
    "gpt2": ("sdpa", "exsel"),
    "gemma2": ("flex_attention",),  # PyTorch's attention and ours have no soft cap
    "gemma3": ("sdpa", "flex_attention", "exsel"),
    "mistral": ("sdpa", "exsel"),
    "qwen3": ("sdpa", "exsel"),
    "bert": ("sdpa", "exsel"),
    "t5": ("sdpa",),  # FlexAttention fails on the CPU with T5's bias, upgraded or not; ours has none
    "bart": ("sdpa", "exsel"),
    "vit": ("sdpa", "exsel"),
}
CASES = [
    pytest.param(name, chosen, marks=[*FLEX.marks, pytest.mark.slow] if chosen in FLEX.values else [])
    for name, several in IMPLEMENTATIONS.items()
    for chosen in several
]


def formula(model: Any, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of a Llama model with both mechanisms, from its weights and the papers' formulas alone."""
    weights = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    config = model.config
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    num_tokens = ids.shape[1]
    place = torch.arange(num_tokens, dtype=dtype)
    exponents = torch.arange(0, head_dim, 2, dtype=dtype) / head_dim
    angles = torch.outer(place, config.rope_parameters["rope_theta"] ** -exponents).repeat(1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weights[name]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()

    def temperature(projected: Tensor, name: str) -> Tensor:
        token = torch.tanh((F.gelu(projected) * weights[f"{name}.weight"].unsqueeze(1)).sum(-1))
        logit = weights[f"{name}.position_logit"].unsqueeze(-1)
        return (token + 1 + torch.sigmoid(logit) * (place + 1).log()).unsqueeze(-1)

    def attention(x: Tensor, layer: str) -> Tensor:
        def project(kind: str, count: int) -> Tensor:
            return (x @ weights[f"{layer}.{kind}_proj.weight"].T).unflatten(-1, (count, head_dim)).transpose(1, 2)

        query, key, value = project("q", heads), project("k", kv_heads), project("v", kv_heads)
        scaled_query = rotate(query * temperature(query, f"{layer}.exsel.temperatures.query"))
        scaled_value = value * temperature(value, f"{layer}.exsel.temperatures.value")
        groups = heads // kv_heads
        scores = scaled_query @ rotate(key).repeat_interleave(groups, 1).transpose(-2, -1) / math.sqrt(head_dim)
        future = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(-1) @ scaled_value.repeat_interleave(groups, 1)
        direction = F.normalize(value, dim=-1, eps=1e-12).repeat_interleave(groups, 1)
        strength = torch.tanh(weights[f"{layer}.exsel.exclusive.strength_logit"]).view(-1, 1, 1)
        z = y - strength * (y * direction).sum(-1, keepdim=True) * direction
        return z.transpose(1, 2).flatten(2) @ weights[f"{layer}.o_proj.weight"].T

    x = weights["model.embed_tokens.weight"][ids]
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        x = x + attention(norm(x, f"{layer}.input_layernorm.weight"), f"{layer}.self_attn")
        hidden = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate = F.silu(hidden @ weights[f"{layer}.mlp.gate_proj.weight"].T)
        inner = gate * (hidden @ weights[f"{layer}.mlp.up_proj.weight"].T)
        x = x + inner @ weights[f"{layer}.mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


@pytest.mark.parametrize("implementation", ["eager", "sdpa", FLEX, "exsel"])
def test_it_is_the_formula(implementation: str) -> None:
    model = upgraded("llama", implementation, exclusive=ExclusiveConfig(strength="learned"))
    exact, eager = formula(model, IDS, torch.float64), formula(model, IDS, torch.float32)
    assert_within_budget([outputs(model, "llama")], [exact], [eager])


@pytest.mark.parametrize("implementation", ["sdpa", "exsel"])
def test_it_is_the_formula_in_float64(implementation: str) -> None:
    model = upgraded("llama", implementation, exclusive=ExclusiveConfig(strength="learned"))
    exact = formula(model, IDS, torch.float64)
    # Only transformers' own norms stay in float32, whatever the dtype.
    assert_near(outputs(model.double(), "llama"), exact, 1e-6)


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_chosen_before_or_after(name: str, implementation: str) -> None:
    eager = upgraded(name, "eager")
    expected = outputs(eager, name)
    assert (expected - outputs(plain(name, "eager"), name)).abs().max() > 0.1 * expected.abs().max()
    before = outputs(upgraded(name, implementation), name)
    assert_near(before, expected)
    eager.set_attn_implementation(implementation)
    assert torch.equal(outputs(eager, name), before)
    changed = plain(name, "eager")
    changed.set_attn_implementation(implementation)
    assert torch.equal(outputs(upgrade(changed), name), before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_gradients_are_the_same(name: str) -> None:
    # FlexAttention has no backward on the CPU.
    def gradients(implementation: str) -> list[Tensor]:
        model = upgraded(name, implementation, exclusive=ExclusiveConfig(strength="learned"))
        output = model(input_ids=IDS)[0]
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        (output * weights).sum().backward()
        assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "exsel." in n)
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    eager = gradients("eager")
    largest = max(gradient.abs().max() for gradient in eager)
    for implementation in ("sdpa", "exsel"):
        for got, expected in zip(gradients(implementation), eager, strict=True):
            assert (got - expected).abs().max() <= 3e-6 * largest


@pytest.mark.parametrize(("name", "lacks"), [("gemma2", "softcap"), ("t5", "position_bias")])
def test_what_our_implementation_lacks_is_refused(name: str, lacks: str) -> None:
    model = upgraded(name)
    model.set_attn_implementation("exsel")
    with pytest.raises(ValueError, match=f"has no {lacks}"):
        outputs(model, name)


def test_our_implementation_under_attention_written_out_is_refused() -> None:
    model = plain("bloom", "exsel")
    with pytest.raises(ValueError, match=r"writes its attention out.*load the model with .eager."):
        exsel.upgrade(model, exclusive=True)
    assert all("exsel" not in dict(module.named_children()) for module in model.modules())


def test_attention_written_out_has_no_implementation_to_choose() -> None:
    model = upgraded("gptj")
    expected = outputs(model, "gptj")
    model.set_attn_implementation("sdpa")
    assert torch.equal(outputs(model, "gptj"), expected)


PROMPTS = [IDS[0, :6].tolist(), IDS[1, :3].tolist(), [*IDS[0].tolist(), *IDS[1, :4].tolist()]]
GREEDY = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=VOCABULARY, pad_token_id=0)
#: Two requests share a batch; a page is smaller than a prompt.
PAGED = ContinuousBatchingConfig(
    num_blocks=16, page_size=8, max_batch_tokens=16, return_logprobs=True, auto_switch_to_flash=False
)


def one_by_one(model: nn.Module) -> list[tuple[list[int], Tensor]]:
    """The new tokens of each prompt, and their log-probabilities."""
    found = []
    for prompt in PROMPTS:
        result = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), generation_config=GREEDY, output_logits=True, return_dict_in_generate=True
        )
        tokens = result.sequences[0, len(prompt) :].tolist()
        logits = torch.cat(result.logits).log_softmax(-1)
        found.append((tokens, logits[range(len(tokens)), tokens]))
    return found


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "paged|eager"), ("gemma3", "sdpa"), ("mistral", "eager")],
)
def test_continuous_batching(name: str, implementation: str) -> None:
    """Transformers' own, upgraded or not, drops Gemma 2's soft cap and has no cache for attention written out."""
    # Of strength 1 the first token's output is rounding alone, which Gemma's norm after it makes larger.
    strength = ExclusiveConfig(strength="learned")
    model = upgraded(name, None if "paged" in implementation else implementation, exclusive=strength)
    expected = one_by_one(model)
    model.set_attn_implementation(implementation)
    results = model.generate_batch(
        PROMPTS, generation_config=GREEDY, continuous_batching_config=PAGED, progress_bar=False
    )
    for key, (tokens, logprobs) in zip(sorted(results, key=_number), expected, strict=True):
        assert results[key].generated_tokens == tokens
        assert_near(torch.tensor(results[key].logprobs), logprobs)


def _number(request: str) -> int:
    return int(request.rpartition("_")[2])


def test_continuous_batching_refuses_ours() -> None:
    model = upgraded("llama", "exsel")
    with pytest.raises(ValueError, match=r"exsel is not supported for continuous batching. Use 'paged.eager', 'sdpa'"):
        model.generate_batch(PROMPTS, generation_config=GREEDY, continuous_batching_config=PAGED, progress_bar=False)
