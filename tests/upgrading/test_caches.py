"""Every cache that runs on the CPU: with it, an upgraded model says what it says of the whole sequence at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import DynamicCache, LlamaForSequenceClassification, QuantizedCache, StaticCache

from budget import assert_greedy
from exsel import ExclusiveConfig
from exsel.models.modeling import CACHE_NAME
from upgrading.architectures import IDS, TOKENS, VOCABULARY, assert_near, inputs, outputs, plain, upgrade, upgraded

DECODERS = ("llama", "gpt2", "gemma2", "gemma3", "mistral", "qwen3", "gptj", "bloom")
#: Longer than the sequences, whose last slot is empty then.
SLOTS = 16
PADDING = 3
#: Of strength 1 the first token's output is rounding alone, which a norm after it, as Gemma's, makes larger.
LEARNED = ExclusiveConfig(strength="learned")


@torch.no_grad()
def in_pieces(model: Any, ids: Tensor, sizes: Sequence[int], cache: Any = None, **options: Any) -> Tensor:
    """The logits from a cache that holds what came before each piece."""
    pieces = []
    for piece in ids.split(list(sizes), dim=1):
        output = model(input_ids=piece, use_cache=True, **{CACHE_NAME: cache}, **options)
        cache = getattr(output, CACHE_NAME)
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1)


def one_by_one(ids: Tensor) -> list[int]:
    return [3, *(1,) * (ids.shape[1] - 3)]


CACHES: dict[str, Callable[[Any], Any]] = {
    "the model's own": lambda config: None,
    "dynamic": lambda config: DynamicCache(),
    "dynamic with windows": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=SLOTS),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", CACHES)
def test_token_by_token(name: str, kind: str) -> None:
    model = upgraded(name)
    whole = outputs(model, name, use_cache=False)
    assert_near(in_pieces(model, IDS, one_by_one(IDS), CACHES[kind](model.config)), whole)


@pytest.mark.parametrize("implementation", ["eager", "exsel"])
@pytest.mark.parametrize("kind", ["dynamic with windows", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_under_other_implementations(name: str, kind: str, implementation: str) -> None:
    model = upgraded(name, implementation)
    whole = outputs(model, name, use_cache=False)
    assert_near(in_pieces(model, IDS, one_by_one(IDS), CACHES[kind](model.config)), whole)


@pytest.mark.parametrize("kind", ["dynamic with windows", "static"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bloom"])
def test_several_tokens_on_a_cache(name: str, kind: str) -> None:
    model = upgraded(name)
    whole = outputs(model, name, use_cache=False)
    assert_near(in_pieces(model, IDS, [4, 3, 2], CACHES[kind](model.config)), whole)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder(name: str) -> None:
    model = upgraded(name)
    whole = outputs(model, name, use_cache=False)
    ids = inputs(name)["decoder_input_ids"]
    cache, pieces = None, []
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=IDS)
        for piece in ids.split(one_by_one(ids), dim=1):
            output = model(encoder_outputs=encoded, decoder_input_ids=piece, use_cache=True, **{CACHE_NAME: cache})
            cache = getattr(output, CACHE_NAME)
            pieces.append(output.logits)
    assert_near(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_a_static_cache_compiled_once(name: str) -> None:
    def steps(model: Any) -> tuple[Tensor, int]:
        torch.compiler.reset()
        cache = StaticCache(config=model.config, max_cache_len=SLOTS)
        counter = CompileCounterWithBackend("eager")
        first = in_pieces(model, IDS[:, :3], [3], cache)
        step = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
        rest = in_pieces(step, IDS[:, 3:], [1] * (TOKENS - 3), cache)
        return torch.cat((first, rest), dim=1), counter.frame_count

    model = upgraded(name, layers=1)
    logits, compilations = steps(model)
    assert_near(logits, outputs(model, name, use_cache=False))
    assert compilations == steps(plain(name, layers=1))[1] < TOKENS - 3


def test_values_are_cached_as_they_are_mixed() -> None:
    """τ_v is in the cached values; what is projected off is the value without it."""
    model = upgraded("llama", layers=1)
    cache = DynamicCache()
    in_pieces(model, IDS, one_by_one(IDS), cache)
    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.model.embed_tokens(IDS))
        value = layer.self_attn.v_proj(hidden).unflatten(-1, (2, 8)).transpose(1, 2)
        position = torch.arange(1, TOKENS + 1)
        tau = layer.self_attn.exsel.temperatures["value"](value, position)
    assert_near(cache.layers[0].values, value * tau.unsqueeze(-1))


def test_a_quantised_cache_leaves_own_values_alone() -> None:
    """float8, which needs no further package; quanto and hqq store through the same call."""
    model = upgraded("llama", layers=1)
    attended: list[tuple[Tensor, Tensor]] = []
    exclusive = model.model.layers[0].self_attn.exsel.exclusive
    exclusive.register_forward_hook(lambda module, arguments, z: attended.append((arguments[1], z)))
    whole = outputs(model, "llama", use_cache=False)
    expected = attended.pop()[0]
    got = in_pieces(model, IDS, one_by_one(IDS), QuantizedCache("fp8", model.config))
    assert (got - whole).abs().max() > 1e-3 * whole.abs().max()  # it was quantised
    assert_near(torch.cat([own for own, _ in attended], dim=-2), expected)
    for own, z in attended:
        along = (z * torch.nn.functional.normalize(own, dim=-1).repeat_interleave(2, dim=1)).sum(-1)
        assert along.abs().max() <= 1e-6 * own.abs().max()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prefix_used_again(name: str) -> None:
    model = upgraded(name)
    whole = outputs(model, name, use_cache=False)
    prefix = DynamicCache()
    in_pieces(model, IDS[:1, :5], [5], prefix)
    # For several continuations at once.
    repeated = copy.deepcopy(prefix)
    repeated.batch_repeat_interleave(2)
    both = torch.cat((IDS[:1].expand(2, -1)[:, :5], torch.stack((IDS[0, 5:], IDS[1, 5:]))), dim=1)
    with torch.no_grad():
        expected = model(input_ids=both, use_cache=False).logits
    assert_near(in_pieces(model, both[:, 5:], [1] * 4, repeated), expected[:, 5:])
    # Cut back to before where another continuation went wrong.
    in_pieces(model, IDS[1:, 5:8], [3], prefix)
    prefix.crop(-3)
    assert_near(in_pieces(model, IDS[:1, 5:], [2, 2], prefix), whole[:1, 5:])


ROTARY = tuple(name for name in DECODERS if name not in ("gpt2", "bloom"))
PADDED = [
    *((name, None, True) for name in ("gpt2", *ROTARY)),
    *((name, None, False) for name in (*ROTARY, "bloom", "falcon", "mpt", "gpt_neox")),
    *((name, chosen, False) for name in ("llama", "gemma3", "gpt_neox") for chosen in ("eager", "exsel")),
    ("falcon", "eager", False),
]


@pytest.mark.parametrize(("name", "implementation", "are_given"), PADDED)
def test_left_padding_changes_nothing(name: str, implementation: str | None, are_given: bool) -> None:
    """Positions restart after it: the caller's, and where there are none by the mask, whatever the model makes up."""
    model = upgraded(name, implementation, exclusive=LEARNED)
    mask = torch.ones_like(IDS)
    mask[0, :PADDING] = 0
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if are_given else {}
    with torch.no_grad():
        alone = model(input_ids=IDS[:1, PADDING:], use_cache=False).logits[0]
        padded = model(input_ids=IDS, attention_mask=mask, use_cache=False, **positions).logits[0, PADDING:]
        assert_near(padded, alone)
        cache, pieces = None, []
        for start, stop in ((0, 5), *((at, at + 1) for at in range(5, TOKENS))):
            here: dict[str, Any] = {key: value[:, start:stop] for key, value in positions.items()}
            here |= {"attention_mask": mask[:, :stop], CACHE_NAME: cache, "use_cache": True}
            output = model(input_ids=IDS[:, start:stop], **here)
            cache = getattr(output, CACHE_NAME)
            pieces.append(output.logits)
    assert_near(torch.cat(pieces, dim=1)[0, PADDING:], alone)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_norm_after_attention_needs_some_of_the_value(name: str) -> None:
    """Strength 1 leaves the first token a rounding, which of large values is large enough for the norm: noise."""
    model = plain(name, "eager")
    with torch.no_grad():
        for parameter in (parameter for path, parameter in model.named_parameters() if "v_proj" in path):
            parameter.mul_(1000)
        upgrade(model, exclusive=ExclusiveConfig(strength=0.9))
        ids, mask = torch.nn.functional.pad(IDS[:1, :2], (PADDING, 0)), torch.tensor([[0] * PADDING + [1] * 2])
        padded = model(ids, attention_mask=mask, use_cache=False).logits[:, PADDING:]
        assert_near(padded, model(IDS[:1, :2], use_cache=False).logits)


def test_left_padding_under_a_classification_head() -> None:
    torch.manual_seed(0)
    config = plain("llama").config
    config.num_labels = 3
    model = upgrade(LlamaForSequenceClassification(config).eval(), exclusive=LEARNED)
    mask = torch.ones_like(IDS)
    mask[0, :PADDING] = 0
    with torch.no_grad():
        assert_near(model(IDS, attention_mask=mask).logits[:1], model(IDS[:1, PADDING:]).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_prefix_tuning() -> None:
    """Its virtual tokens are in a cache, which gradient checkpointing has none of: PEFT says so."""
    from peft import PrefixTuningConfig, get_peft_model  # the tests of GPUs below run without it

    model = upgraded("llama", exclusive=LEARNED)
    tuned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    tuned(input_ids=IDS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


def test_packed_sequences_restart_positions() -> None:
    model = upgraded("llama")
    position = torch.tensor([[*range(4), *range(5)]])
    with torch.no_grad():
        alone = model(input_ids=IDS[:1, 4:], use_cache=False).logits
        packed = model(input_ids=IDS[:1], position_ids=position, use_cache=False).logits
    assert_near(packed[:, 4:], alone)


GENERATION = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": VOCABULARY, "do_sample": False}


@pytest.mark.filterwarnings("ignore:.*does not support compilation")
@pytest.mark.parametrize("implementation", [None, "static", "dynamic", "hybrid"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bloom"])
def test_generate_says_what_one_pass_says(name: str, implementation: str | None) -> None:
    model = upgraded(name)
    sequences = model.generate(IDS, cache_implementation=implementation, **GENERATION)
    assert_greedy(model, sequences, TOKENS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_generate_in_a_padded_batch(name: str) -> None:
    model = upgraded(name)
    mask = torch.ones_like(IDS)
    mask[0, :PADDING] = 0
    together = model.generate(IDS, attention_mask=mask, **GENERATION)
    assert_greedy(model, together[:1, PADDING:], TOKENS - PADDING)
    assert_greedy(model, together[1:], TOKENS)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_generate_with_beams(name: str) -> None:
    model = upgraded(name, exclusive=LEARNED)
    found = model.generate(
        IDS, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True, **GENERATION
    )
    with torch.no_grad():
        logits = model(input_ids=found.sequences, use_cache=False).logits[:, TOKENS - 1 : -1].log_softmax(-1)
    chosen = logits.gather(-1, found.sequences[:, TOKENS:].unsqueeze(-1)).sum((1, 2))
    assert_near(found.sequences_scores, chosen / 6, 1e-5)


@pytest.mark.parametrize("assistant", ["another model", "the prompt"])
def test_generate_with_an_assistant(assistant: str) -> None:
    """Whose wrong guesses are cut off the cache again."""
    model = upgraded("llama")
    helper = {"prompt_lookup_num_tokens": 2} if assistant == "the prompt" else {"assistant_model": plain("llama")}
    ids = IDS[:1].repeat(1, 2)
    sequences = model.generate(ids, **helper, **GENERATION)
    assert_greedy(model, sequences, ids.shape[1])


def test_generate_for_an_encoder_and_decoder() -> None:
    model = upgraded("t5")
    sequences = model.generate(IDS, num_beams=1, **GENERATION)
    with torch.no_grad():
        logits = model(input_ids=IDS, decoder_input_ids=sequences, use_cache=False).logits
    assert torch.equal(logits[:, :-1].argmax(-1), sequences[:, 1:])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_offloaded(kind: str) -> None:
    """To the host; transformers needs a GPU for that."""
    model = upgraded("llama").cuda()
    with torch.no_grad():
        whole = model(input_ids=IDS.cuda(), use_cache=False).logits
    if kind == "static":
        cache: Any = StaticCache(config=model.config, max_cache_len=SLOTS, offloading=True)
    else:
        cache = DynamicCache(config=model.config, offloading=True)
    assert_near(in_pieces(model, IDS.cuda(), one_by_one(IDS), cache), whole, 1e-5)
