"""``attn_implementation="exsel"`` against every other implementation, in our model and in another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

import exsel
from exsel.attention_interface import exsel_attention_forward
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
    model = small_model(exclusive=exsel.ExclusiveConfig(strength="learned"), selective=exsel.SelectiveConfig())
    expected = model(IDS, labels=IDS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(IDS, labels=IDS)
    torch.testing.assert_close(compiled.logits, expected.logits)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(compiled.loss, parameters), torch.autograd.grad(expected.loss, parameters)
    )
