"""``attn_implementation="exsel"`` against every other implementation, in our model and in another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache
from transformers.masking_utils import (
    bidirectional_mask_function,
    or_masks,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

import exsel
from exsel import attention_interface
from exsel.attention_interface import exsel_attention_forward, exsel_mask
from exsel.nn.band import Band
from models.small_models import small_config, small_model

IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])


def test_it_is_the_default() -> None:
    assert exsel.ExselForCausalLM(small_config()).config._attn_implementation == "exsel"
    assert small_model(attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("other", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "left padding"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_same_numbers_as_any_other(
    variant: dict[str, Any], shape: dict[str, Any], other: str, mask: torch.Tensor | None, use_cache: bool
) -> None:
    # Transformers' eager attention takes its softmax in float32, whatever the dtype.
    dtype, tolerance = (torch.float64, 1e-9) if other == "sdpa" else (torch.float32, 2e-5)
    ours = small_model(**variant, **shape).to(dtype)
    theirs = small_model(**variant, **shape, attn_implementation=other).to(dtype)
    labels = IDS.clone()
    if mask is not None:
        # Nor what padding would predict: its own outputs are nobody's business.
        labels[:, 1:][(mask[:, :-1] & mask[:, 1:]) == 0] = -100
    arguments = {"input_ids": IDS, "attention_mask": mask, "labels": labels, "use_cache": use_cache}
    got, expected = ours(**arguments), theirs(**arguments)
    kept = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(got.logits[kept], expected.logits[kept], rtol=tolerance, atol=tolerance)
    got.loss.backward()
    expected.loss.backward()
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            ours_p.grad, theirs_p.grad, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


#: Positions of packed sequences of three, four and two tokens, and of one and eight.
PACKED = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 7]])
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    "given",
    [{}, {"position_ids": PACKED}, {"attention_mask": PADDING}, {"attention_mask": RIGHT}],
    ids=["whole", "packed", "left padding", "right padding"],
)
def test_windows_and_sequences_without_masks(
    variant: dict[str, Any], window: int | None, given: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 the same as with the masks of transformers, which are not made."""
    sliding = {} if window is None else {"layer_types": ["sliding_attention"] * 2, "sliding_window": window}
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, **sliding}
    theirs = small_model(**variant, **shape, attn_implementation="sdpa").double()
    ours = small_model(**variant, **shape).double()
    kept = given.get("attention_mask", torch.ones_like(IDS)).bool()
    made = []
    monkeypatch.setattr(Band, "_mask", lambda *_: made.append("a mask"))
    monkeypatch.setattr(attention_interface, "sdpa_mask", lambda *_, **__: made.append("theirs"))
    labels = IDS.masked_fill(~kept, -100)
    labels[:, 1:][~kept[:, :-1]] = -100
    outputs = [model(IDS, labels=labels, use_cache=False, **given) for model in (ours, theirs)]
    assert made == ([] if window is not None or given else ["theirs"])
    torch.testing.assert_close(outputs[0].logits[kept], outputs[1].logits[kept], rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(output.loss, list(model.parameters()))
        for output, model in zip(outputs, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[5, 1, 1, 1, 1], [2, 4, 3]], ids=["one by one", "in chunks"])
def test_a_window_on_a_cache_is_its_last_rows(variant: dict[str, Any], chunks: list[int]) -> None:
    sliding = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "num_hidden_layers": 2}
    model = small_model(**variant, **sliding).double()
    whole = model(IDS, use_cache=False).logits
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        logits = [model(part, past_key_values=cache).logits for part in IDS.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-10, atol=1e-10)


def test_which_masks_are_not_made() -> None:
    window = sliding_window_causal_mask_function(3)
    told = exsel_mask(2, 9, 9, mask_function=window)
    assert isinstance(told, Band)
    assert torch.equal(told.mask(), sdpa_mask(1, 9, 9, mask_function=window, allow_is_causal_skip=False))
    later = exsel_mask(2, 4, 9, 5, 0, window)
    assert isinstance(later, Band)
    assert torch.equal(later.contiguous(), sdpa_mask(1, 4, 9, 5, 0, window, allow_is_causal_skip=False))
    between = torch.tensor([[True, False, True, True, True, True, True, True, True]] * 2)
    for others in (
        {"attention_mask": between},
        {"mask_function": or_masks(window, bidirectional_mask_function)},
        {"q_offset": torch.tensor(0)},
    ):
        arguments = {"mask_function": window, "allow_is_causal_skip": False, **others}
        assert torch.equal(exsel_mask(2, 9, 9, **arguments), sdpa_mask(2, 9, 9, **arguments))


@torch.no_grad()
def test_static_cache(variant: dict[str, Any], shape: dict[str, Any]) -> None:
    """Its current tokens are not its last slots."""
    model = small_model(**variant, **shape)
    whole = model(IDS, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=16)
    first = model(IDS[:, :5], past_key_values=cache).logits
    rest = [model(IDS[:, place : place + 1], past_key_values=cache).logits for place in range(5, 9)]
    torch.testing.assert_close(torch.cat((first, *rest), dim=1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_in_a_model_of_transformers() -> None:
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    expected = theirs(IDS, attention_mask=PADDING).logits
    theirs.set_attn_implementation("exsel")
    torch.testing.assert_close(theirs(IDS, attention_mask=PADDING).logits[1], expected[1])
    kept = PADDING.bool()
    torch.testing.assert_close(theirs(IDS, attention_mask=PADDING).logits[kept], expected[kept])


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_it_does_not_have_is_refused(name: str) -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f"has no {name}"):
        exsel_attention_forward(nn.Module(), x, x, x, None, **{name: 1.0})


def test_compiled_whole() -> None:
    torch.compiler.reset()
    mechanisms = {"exclusive": exsel.ExclusiveConfig(strength="learned"), "selective": exsel.SelectiveConfig()}
    model = small_model(num_hidden_layers=1, **mechanisms)
    expected = model(IDS, labels=IDS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(IDS, labels=IDS)
    torch.testing.assert_close(compiled.logits, expected.logits)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(compiled.loss, parameters), torch.autograd.grad(expected.loss, parameters)
    )
