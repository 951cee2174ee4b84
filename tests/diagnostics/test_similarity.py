from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from exsel import ExclusiveConfig, ExselConfig, ExselForCausalLM, SelectiveConfig
from exsel.diagnostics import similarity_bias

CPU = torch.device("cpu")
HEADS, GROUPS, DIM, TOKENS = 4, 2, 8, 24


def build(**options: Any) -> ExselForCausalLM:
    config = ExselConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=DIM,
        initializer_range=0.3,
        **options,
    )
    return ExselForCausalLM(config).eval()


@pytest.fixture
def rows() -> list[dict[str, list[int]]]:
    return [{"input_ids": torch.randint(0, 50, (TOKENS,)).tolist()} for _ in range(5)]


@torch.no_grad()
def by_hand(model: ExselForCausalLM, rows: list[dict[str, list[int]]]) -> list[float]:
    """Mean cos(y, v) a layer in float64: attention by its formula, one head and one token after the other."""
    model = model.double()
    sums: list[list[float]] = [[], []]
    for row in rows:
        hidden = model.model.embed_norm(model.model.embed_tokens(torch.tensor([row["input_ids"]])))
        cos, sin = model.model.rotary_emb(hidden, torch.arange(TOKENS)[None])
        for index, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            inputs = layer.input_layernorm(hidden)
            query, key, value = (
                projection(inputs)[0].view(TOKENS, -1, DIM)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            turned = apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin)
            query, key = turned[0][0].transpose(0, 1), turned[1][0].transpose(0, 1)
            outputs = torch.zeros(TOKENS, HEADS, DIM, dtype=torch.float64)
            for head in range(HEADS):
                group = head // (HEADS // GROUPS)
                for token in range(TOKENS):
                    weights = (key[: token + 1, group] @ query[token, head] / DIM**0.5).softmax(0)
                    output = weights @ value[: token + 1, group]
                    outputs[token, head] = output
                    own = value[token, group]
                    sums[index].append(float(output @ own / (output.norm() * own.norm())))
            hidden = hidden + attention.o_proj(outputs.flatten(1))[None]
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return [sum(values) / len(values) for values in sums]


def test_equals_the_formula(rows: list[dict[str, list[int]]]) -> None:
    model = build()
    found = similarity_bias(model, rows, batch_size=2, device=CPU)
    assert [layer["layer"] for layer in found] == [0, 1]
    assert [layer["before_exclusion"] for layer in found] == [None, None]
    assert [layer["output"] for layer in found] == pytest.approx(by_hand(model, rows), abs=1e-5)
    assert all(abs(layer["output"] or 0.0) > 0.01 for layer in found)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_does_not_depend_on_the_batches(rows: list[dict[str, list[int]]], batch_size: int) -> None:
    model = build(exclusive=ExclusiveConfig(layers=[1]))
    one, other = (similarity_bias(model, rows, batch_size=size, device=CPU) for size in (3, batch_size))
    for first, second in zip(one, other, strict=True):
        assert first["output"] == pytest.approx(second["output"], abs=1e-6)
        assert first["before_exclusion"] == pytest.approx(second["before_exclusion"], abs=1e-6)


def test_exclusion_leaves_nothing_along_the_own_value(rows: list[dict[str, list[int]]]) -> None:
    plain, exclusive = build(), build(exclusive=ExclusiveConfig())
    exclusive.load_state_dict(plain.state_dict(), strict=False)
    before = similarity_bias(plain, rows, batch_size=5, device=CPU)
    after = similarity_bias(exclusive, rows, batch_size=5, device=CPU)
    for layer in after:
        assert abs(layer["output"]) < 1e-6  # type: ignore[arg-type]
    # The first layers have the same inputs and weights: attention's own output is the same.
    assert after[0]["before_exclusion"] == pytest.approx(before[0]["output"], abs=1e-6)
    assert after[1]["before_exclusion"] != pytest.approx(before[1]["output"], abs=1e-4)


def test_layers_without_exclusion_say_so(rows: list[dict[str, list[int]]]) -> None:
    first, last = similarity_bias(build(exclusive=ExclusiveConfig(layers="last:1")), rows, batch_size=5, device=CPU)
    assert first["before_exclusion"] is None
    assert last["before_exclusion"] is not None


def test_half_strength_leaves_some(rows: list[dict[str, list[int]]]) -> None:
    for layer in similarity_bias(build(exclusive=ExclusiveConfig(strength=0.5)), rows, batch_size=5, device=CPU):
        before, output = layer["before_exclusion"], layer["output"]
        assert before is not None
        assert output is not None
        assert 0 < output < before


def test_the_own_value_is_the_unscaled_one(rows: list[dict[str, list[int]]]) -> None:
    """A value temperature scales what is mixed; the token's own value keeps its direction, and the sign with it."""
    model = build(selective=SelectiveConfig(token="none", query=False))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.temperatures["value"].position_logit.fill_(-30.0)  # σ(a) = 0: a temperature of 1
    plain = build()
    plain.load_state_dict(model.state_dict(), strict=False)
    one, other = (similarity_bias(each, rows, batch_size=5, device=CPU) for each in (model, plain))
    assert [layer["output"] for layer in one] == pytest.approx([layer["output"] for layer in other], abs=1e-5)


def test_packed_documents_are_kept_apart() -> None:
    model = build()
    halves = [torch.randint(0, 50, (TOKENS,)).tolist() for _ in range(2)]
    packed = [{"input_ids": halves[0] + halves[1], "position_ids": [*range(TOKENS)] * 2}]
    apart = [{"input_ids": half} for half in halves]
    one = similarity_bias(model, packed, batch_size=1, device=CPU)
    other = similarity_bias(model, apart, batch_size=2, device=CPU)
    assert [layer["output"] for layer in one] == pytest.approx([layer["output"] for layer in other], abs=1e-5)


def test_leaves_the_model_as_it_was(rows: list[dict[str, list[int]]]) -> None:
    model = build(exclusive=ExclusiveConfig()).train()
    tokens = torch.tensor([rows[0]["input_ids"]])
    before: Tensor = model(tokens).logits
    similarity_bias(model, rows, batch_size=2, device=CPU)
    assert model.training
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_first_token_keeps_no_direction() -> None:
    """Attention's output for it is its own value, and what exclusion leaves is rounding: neither +1 nor -1."""
    model = build(exclusive=ExclusiveConfig())
    rows = [{"input_ids": [token]} for token in range(20)]
    for layer in similarity_bias(model, rows, batch_size=20, device=CPU):
        assert layer["before_exclusion"] == pytest.approx(1.0, abs=1e-6)
        assert layer["output"] == pytest.approx(0.0, abs=1e-4)
