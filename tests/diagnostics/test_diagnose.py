"""Whole models: what diagnose finds against transformers' own attention weights, with every matrix there."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    BatchEncoding,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import exsel
from diagnostics.brute_force import Call, Places, aggregated, by_token, one_sequence
from exsel.diagnostics.metrics import METRICS
from upgrading.architectures import IDS, PIXELS, TOKENS, inputs, plain

NAMES = [metric.name for metric in METRICS]
_OF_WEIGHTS = ("self_weight", "spikiness", "entropy", "effective_tokens", "sink_mass")
_OF_VALUES = ("similarity", "value_similarity", "centred_similarity")


def gpt_oss() -> Any:
    config = GptOssConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=4,
    )
    config._experts_implementation = "eager"  # the others have no float64
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.copy_(torch.randn(4))
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.mul_(20)
    return model


def build(name: str) -> Any:
    return (gpt_oss() if name == "gpt_oss" else plain(name)).double()


def written_out(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention by its formula, with every matrix there, which remembers what it did."""
    num_heads, num_tokens = query.shape[1], query.shape[2]
    may_see = torch.ones(query.shape[0], num_tokens, num_tokens, dtype=torch.bool)
    if attention_mask is not None:
        may_see = may_see & attention_mask[:, 0]
    elif module.is_causal:
        may_see = may_see.tril()
    weights = torch.zeros(query.shape[0], num_heads, num_tokens, num_tokens, dtype=query.dtype)
    for head in range(num_heads):
        scores = query[:, head] @ key[:, head * key.shape[1] // num_heads].mT * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        exponentials = scores.exp() * may_see
        nothing = 0.0 if s_aux is None else s_aux[head].exp()
        weights[:, head] = exponentials / (exponentials.sum(-1, keepdim=True) + nothing).clamp_min(1e-300)
    y = weights @ value.repeat_interleave(num_heads // value.shape[1], dim=1)
    CALLS.append(Call(weights, y, value, may_see))
    return y.transpose(1, 2), None


CALLS: list[Call] = []
AttentionInterface.register("written_out", written_out)
AttentionMaskInterface.register("written_out", sdpa_mask)


@torch.no_grad()
def observed(model: Any, batch: dict[str, Tensor]) -> list[Call]:
    """What each layer mixes."""
    other = copy.deepcopy(model)
    other.config._attn_implementation_internal = "written_out"
    CALLS.clear()
    options = {} if "pixel_values" in batch else {"use_cache": False}
    other(**batch, **options)
    return list(CALLS)


def check(layer: dict[str, Any], call: Call, places: Places, names: tuple[str, ...], budget: float = 1e-9) -> None:
    expected = by_token(call, places)
    for name in names:
        assert name in layer["metrics"], (name, layer["gaps"].get(name))
        got = layer["metrics"][name]
        for part, value in aggregated(expected[name], places).items():
            if part == "head_buckets":
                for mine, theirs in zip(got[part], value, strict=True):  # type: ignore[call-overload]
                    assert mine == [None if x is None else pytest.approx(x, rel=budget, abs=budget) for x in theirs], (
                        name
                    )
            else:
                assert got[part] == pytest.approx(value, rel=budget, abs=budget), (name, part)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "qwen3", "bert", "vit", "gpt_oss"])
def test_equals_the_definitions(name: str) -> None:
    model = build(name)
    batch = {"input_ids": IDS} if name == "gpt_oss" else inputs(name)
    if name == "vit":
        batch = {"pixel_values": PIXELS.double()}
    if name == "gemma2":
        model.set_attn_implementation("eager")  # the default up to transformers 5.17 left the soft cap out
    calls = observed(model, batch)
    diagnosis = exsel.diagnose(model, [batch])
    assert len(diagnosis.layers) == len(calls) == 2
    places = one_sequence(*calls[0].weights.shape[:3:2])
    for layer, call in zip(diagnosis.layers, calls, strict=True):
        # Where there is a soft cap, transformers attends with a softmax in float32.
        check(layer, call, places, _OF_WEIGHTS + _OF_VALUES, 1e-5 if name == "gemma2" else 1e-9)
        assert layer["is_causal"] == (name not in ("bert", "vit"))
        assert sorted([*layer["metrics"], *layer["gaps"]]) == sorted(NAMES)
    json.dumps(diagnosis.to_dict(), allow_nan=False)


@pytest.mark.skipif(not build("gemma2")._supports_sdpa, reason="this transformers refuses what 5.17 let be")
def test_a_soft_cap_that_pytorchs_attention_leaves_out() -> None:
    model = build("gemma2")
    model.set_attn_implementation("sdpa")
    diagnosis = exsel.diagnose(model, [inputs("gemma2")])
    assert all("self_weight" in layer["metrics"] for layer in diagnosis.layers), diagnosis.layers[0]["gaps"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_padding_is_no_token(name: str, side: str) -> None:
    model = build(name)
    mask = torch.ones_like(IDS)
    padded = slice(0, 3) if side == "left" else slice(TOKENS - 3, TOKENS)
    mask[1, padded] = 0
    places = one_sequence(2, TOKENS)
    kept = [column for column in range(TOKENS) if mask[1, column]]
    places[1] = [(2, kept.index(column) + 1) if column in kept else (0, 0) for column in range(TOKENS)]
    batch = {"input_ids": IDS, "attention_mask": mask}
    diagnosis = exsel.diagnose(model, [batch])
    for layer, call in zip(diagnosis.layers, observed(model, batch), strict=True):
        check(layer, call, places, _OF_WEIGHTS + _OF_VALUES)
    assert diagnosis.data == {"description": "1 batch", "sequences": 2, "tokens": 2 * TOKENS - 3, "longest": TOKENS}


def test_packed_documents() -> None:
    model = build("llama")
    position_ids = torch.tensor([[*range(4), *range(TOKENS - 4)], [*range(TOKENS)]])
    places: Places = [
        [*((1, n + 1) for n in range(4)), *((2, n + 1) for n in range(TOKENS - 4))],
        [(3, n + 1) for n in range(TOKENS)],
    ]
    batch = {"input_ids": IDS, "position_ids": position_ids}
    diagnosis = exsel.diagnose(model, [batch])
    for layer, call in zip(diagnosis.layers, observed(model, batch), strict=True):
        assert call.weights[0, :, 4:, :4].sum() == 0  # the documents are apart in the model too
        check(layer, call, places, _OF_WEIGHTS + _OF_VALUES)
    assert diagnosis.data["sequences"] == 3


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder(name: str) -> None:
    diagnosis = exsel.diagnose(build(name), [inputs(name)])
    assert [layer["is_causal"] for layer in diagnosis.layers] == [False, False, True, True]
    assert all("self_weight" in layer["metrics"] for layer in diagnosis.layers)
    assert {each["reason"] for each in diagnosis.left_out} == {"cross-attention has no own values"}


@torch.no_grad()
def test_norms_of_the_map() -> None:
    model = build("llama")
    inputs_of: list[Tensor] = []
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda _m, _i, output: inputs_of.append(output))
    diagnosis = exsel.diagnose(model, [IDS])
    for index, layer in enumerate(diagnosis.layers):
        attention = model.model.layers[index].self_attn
        query, key = (projection.weight.unflatten(0, (-1, 8)) for projection in (attention.q_proj, attention.k_proj))
        maps = [query[head].T @ key[head // 2] for head in range(4)]
        norms = torch.stack([(inputs_of[index] @ w).norm(dim=-1) for w in maps])
        metrics = layer["metrics"]
        assert metrics["operator_norm"]["heads"] == pytest.approx([float(torch.linalg.norm(w, 2)) for w in maps])
        assert metrics["operator_norm"]["buckets"] == metrics["operator_norm"]["head_buckets"] == []
        assert metrics["token_norm"]["heads"] == pytest.approx(norms.mean((1, 2)).tolist())
        assert metrics["token_norm"]["most"] == pytest.approx(float(norms.max()))


@torch.no_grad()
def test_norms_of_a_fused_projection_with_biases() -> None:
    model = build("gpt2")
    (first, _) = exsel.diagnose(model, [IDS]).layers
    query, key, _ = (part.unflatten(-1, (4, 8)) for part in model.transformer.h[0].attn.c_attn.weight.chunk(3, dim=-1))
    expected = [float(torch.linalg.norm(query[:, head] @ key[:, head].T, 2)) for head in range(4)]
    assert first["metrics"]["operator_norm"]["heads"] == pytest.approx(expected)


def test_a_bias_does_not_drown_the_map() -> None:
    model = plain("gpt2")
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias.add_(100.0)
    half = copy.deepcopy(model).bfloat16()
    exact, found = (exsel.diagnose(each, [IDS]).layers[0]["metrics"] for each in (model.double(), half))
    assert found["operator_norm"]["heads"] == pytest.approx(exact["operator_norm"]["heads"], rel=0.02)
    assert found["token_norm"]["mean"] == pytest.approx(exact["token_norm"]["mean"], rel=0.02)


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_normalised_queries_are_a_gap(name: str) -> None:
    for layer in exsel.diagnose(build(name), [IDS]).layers:
        assert "normalised" in layer["gaps"]["token_norm"]
        assert "normalised" in layer["gaps"]["operator_norm"]


@pytest.mark.parametrize("name", ["gptj", "bloom"])
def test_attention_that_is_written_out_has_no_weights(name: str) -> None:
    for layer in exsel.diagnose(build(name), [IDS]).layers:
        assert {gap for gap, reason in layer["gaps"].items() if "written out" in reason} == set(_OF_WEIGHTS)
        assert set(_OF_VALUES) <= layer["metrics"].keys()
        assert layer["is_causal"]


def test_a_score_term_that_is_not_known_is_a_gap() -> None:
    model = build("llama")

    def peculiar(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        far = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).tril()
        scores = query @ key.repeat_interleave(2, 1).mT * scaling - 0.01 * far  # told to nobody
        weights = scores.masked_fill(far.new_ones(TOKENS, TOKENS).triu(1).bool(), float("-inf")).softmax(-1)
        return (weights @ value.repeat_interleave(2, 1)).transpose(1, 2), None

    AttentionInterface.register("peculiar", peculiar)
    model.config._attn_implementation_internal = "peculiar"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exsel.diagnostics.watching._READABLE", ("peculiar",))
        diagnosis = exsel.diagnose(model, [IDS])
    for layer in diagnosis.layers:
        for name in _OF_WEIGHTS:
            assert "do not give the layer's output" in layer["gaps"][name]
        assert "similarity" in layer["metrics"]


def test_batches_add_up() -> None:
    model = build("llama")
    ids = torch.randint(61, (5, 13))
    calls: list[tuple[int, int]] = []
    one = exsel.diagnose(model, [ids], on_batch=lambda *call: calls.append(call))
    many = exsel.diagnose(model, [ids[:1], ids[1:4], {"input_ids": ids[4:]}])
    assert calls == [(1, 65)]
    assert one.buckets == many.buckets == [{"first": 2**k, "last": 2 ** (k + 1) - 1} for k in range(4)]
    for left, right in zip(one.layers, many.layers, strict=True):
        for name, metric in left["metrics"].items():
            for part in ("mean", "least", "most", "heads", "buckets"):
                assert right["metrics"][name][part] == pytest.approx(metric[part], abs=1e-9), (name, part)


def test_pictures() -> None:
    class Words:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f" w{token}" for token in ids)

    model = build("llama")
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    batch = {"input_ids": IDS, "attention_mask": mask}
    (picture,) = exsel.diagnose(model, [batch, IDS], tokenizer=Words(), pictured_tokens=4).pictures
    assert picture["tokens"] == [f" w{token}" for token in IDS[0, 2:6].tolist()]
    assert picture["positions"] == [1, 2, 3, 4]
    places = [[(0, 0)] * 2 + [(1, n + 1) for n in range(TOKENS - 2)], one_sequence(2, TOKENS)[1]]
    expected = by_token(observed(model, batch)[1], places)
    values = picture["layers"][1]["values"]
    assert set(values) == {"similarity", "self_weight", "effective_tokens", "token_norm"}
    for name in ("similarity", "self_weight", "effective_tokens"):
        for head in range(4):
            assert values[name][head] == pytest.approx([expected[name][0, head, column] for column in range(2, 6)])
    (plain_picture,) = exsel.diagnose(model, [IDS]).pictures
    assert plain_picture["tokens"] == [str(token) for token in IDS[0].tolist()]
    assert exsel.diagnose(model, [IDS], pictured_tokens=0).pictures == []


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batch"),
        ([torch.zeros(1, 0, dtype=torch.long)], "empty"),
        ([{}], "empty"),
        ([{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}], "hides every token"),
        ([torch.zeros(1, 65, dtype=torch.long)], "positions for 64 tokens, not for 65"),
    ],
)
def test_mistakes_in_the_data(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exsel.diagnose(plain("gpt2"), batches)


class Small(nn.Module):
    """A module of one's own, whose forward has words of its own for what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        y: Tensor = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        return y


def test_a_module_takes_batches_as_its_forward_does() -> None:
    torch.manual_seed(0)
    model, tokens = Small().eval(), torch.randint(0, 10, (2, 5))
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    ways = [tokens, (tokens,), [tokens], {"tokens": tokens}, BatchEncoding({"tokens": tokens})]
    found = [exsel.diagnose(model, [way]).to_dict() for way in ways]
    assert found[0]["data"] == {"description": "1 batch", "sequences": 2, "tokens": 10, "longest": 5}
    assert all(each == found[0] for each in found)
    masked = [exsel.diagnose(model, [way]) for way in ((tokens, padding), {"tokens": tokens, "padding": padding})]
    assert masked[0].layers == masked[1].layers != found[0]["layers"]
    with pytest.raises(TypeError, match="batch 0 is str: give a mapping"):
        exsel.diagnose(model, ["tokens"])


def test_text_beyond_the_context_is_noted_where_a_model_goes_on() -> None:
    diagnosis = exsel.diagnose(plain("llama"), [torch.zeros(1, 65, dtype=torch.long)])
    assert diagnosis.notes == ["a sequence of 65 tokens is longer than the model's context of 64"]


def test_nan_names_the_layer() -> None:
    model = plain("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"what reaches model\.layers\.1\.self_attn is not finite"):
        exsel.diagnose(model, [IDS])
    model = plain("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"the output of model\.layers\.1\.self_attn is not finite"):
        exsel.diagnose(model, [IDS])


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_nan_in_a_projection_is_never_a_figure(projection: str) -> None:
    # On few tokens PyTorch's attention gives numbers for queries that are none.
    model = plain("llama")
    with torch.no_grad():
        getattr(model.model.layers[1].self_attn, projection).weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the output of model\.layers\.1\.self_attn is not finite"):
        exsel.diagnose(model, [IDS[:, :5]])


def test_a_model_without_attention() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match="no self-attention that could be watched: none of its modules is softmax"):
        exsel.diagnose(mamba, [IDS])
