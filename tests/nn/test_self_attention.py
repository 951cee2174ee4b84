"""The layer against a composition written out here, and decoding with a cache against the whole pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from exsel import ExselError, SelectiveConfig
from exsel.nn import Exclusive, KVCache, SelfAttention, Temperature

DIM, HEADS = 24, 6
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"exclusive": None},
    "exclusive": {"exclusive": 1.0},
    "learned": {"exclusive": "learned"},
    "selective": {"exclusive": None, "selective": SelectiveConfig(key=True)},
    "both": {"exclusive": 1.0, "selective": SelectiveConfig()},
    "mlp": {"exclusive": 0.5, "selective": SelectiveConfig(token="mlp", per_head=False)},
    "linear": {
        "exclusive": None,
        "selective": SelectiveConfig(token="linear", key=True, position_form="double_exponential"),
    },
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str, **options: Any) -> SelfAttention:
    """The layer with every parameter away from where it starts."""
    layer = SelfAttention(DIM, HEADS, **{"num_kv_heads": 2, **VARIANTS[variant], **options}).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "temperatures" in name or "exclusive" in name or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.7)
            if "position_logit" in name:
                parameter.fill_(-1.0)
    return layer


def turn(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Rotary embedding as the complex product that it is: x [B, H, T, D], position [B, T]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    phase = torch.exp(1j * position.double().unsqueeze(-1) * frequency).unsqueeze(1)
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * phase
    return torch.cat((turned.real, turned.imag), dim=-1)


def by_hand(layer: SelfAttention, x: Tensor, allowed: Tensor, position: Tensor, theta: float | None) -> Tensor:
    """The layer's formula in float64: x [B, T, E], allowed [T, T], position [B, T], 0-based."""
    weights = {name: parameter.double() for name, parameter in layer.state_dict().items()}
    x = x.double()

    def project(name: str) -> Tensor:
        projected = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)
        return projected.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)

    def tau(name: str, projected: Tensor) -> Tensor:
        prefix = f"temperatures.{name}"
        if f"{prefix}.weight" not in weights:
            return torch.ones((), dtype=torch.float64)
        if f"{prefix}.feature_proj.weight" in weights:
            features = x @ weights[f"{prefix}.feature_proj.weight"].T
            projected = features.unflatten(-1, (projected.shape[1], -1)).transpose(1, 2)
        temperature = layer.get_submodule(prefix)
        features = x.unsqueeze(1) if temperature.token == "linear" else F.gelu(projected)
        token = torch.tanh((features * weights[f"{prefix}.weight"].unsqueeze(-2)).sum(-1))
        logit = weights[f"{prefix}.position_logit"].unsqueeze(-1)
        gain = torch.sigmoid(logit) if temperature.position_form == "sigmoid" else torch.exp(-torch.exp(logit))
        return (token + 1 + gain * (position + 1).double().log().unsqueeze(1)).unsqueeze(-1)

    def norm(name: str, projected: Tensor) -> Tensor:
        if f"{name}.weight" not in weights:
            return projected
        eps = torch.finfo(torch.float32).eps
        return projected / (projected.square().mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]

    q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
    tau_q, tau_k, tau_v = tau("query", q), tau("key", k), tau("value", v)
    q, k = norm("q_norm", q), norm("k_norm", k)
    if theta is not None:
        q, k = turn(q, position, theta), turn(k, position, theta)
    group = q.shape[1] // k.shape[1]
    own = v.repeat_interleave(group, 1)
    scores = (tau_q * q) @ (tau_k * k).repeat_interleave(group, 1).mT / math.sqrt(layer.head_dim)
    y = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ (tau_v * v).repeat_interleave(group, 1)
    if layer.exclusive is not None:
        alpha: Any = layer.exclusive.strength
        if alpha == "learned":
            alpha = torch.tanh(weights["exclusive.strength_logit"])[:, None, None]
        y = y - alpha * (y * own).sum(-1, keepdim=True) * own / own.square().sum(-1, keepdim=True)
    return y.transpose(1, 2).flatten(2) @ weights["o_proj.weight"].T + weights.get("o_proj.bias", 0)


def window_mask(tokens: int, window: int | None = None, is_causal: bool = True) -> Tensor:
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    allowed = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    return allowed if window is None else allowed & (distance.abs() < window)


@variants
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": None, "bias": True},
        {"num_kv_heads": 1, "head_dim": 6, "rope_theta": 500.0},
        {"rope_theta": None},
        {"qk_norm": True},
        {"sliding_window": 3},
        {"sliding_window": 1, "backend": "reference"},
        {"is_causal": False},
        {"is_causal": False, "sliding_window": 2},
    ],
    ids=str,
)
def test_formula(variant: str, options: dict[str, Any]) -> None:
    layer, x = build(variant, **options), torch.randn(2, 7, DIM)
    allowed = window_mask(7, options.get("sliding_window"), options.get("is_causal", True))
    expected = by_hand(layer, x, allowed, torch.arange(7).expand(2, -1), options.get("rope_theta", 10000.0))
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


@variants
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "sliding_window": 4}, {"sliding_window": 1}], ids=str)
@pytest.mark.parametrize("chunks", [[1] * 11, [5, 1, 1, 4], [11], [2, 9]], ids=str)
def test_cached_equals_whole(variant: str, options: dict[str, Any], chunks: list[int]) -> None:
    layer, x, cache = build(variant, **options), torch.randn(2, 11, DIM), KVCache()
    parts = [layer(part, cache=cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=1e-5, atol=1e-5)
    assert cache.seen == 11
    assert cache.key is not None
    window = options.get("sliding_window")
    assert cache.key.shape[-2] == (11 if window is None else window - 1), "no more than the window needs"


@variants
@pytest.mark.parametrize("options", [{}, {"sliding_window": 3}], ids=str)
@pytest.mark.parametrize("cached", [False, True])
def test_left_padding_changes_nothing(variant: str, options: dict[str, Any], cached: bool) -> None:
    layer, x = build(variant, **options), torch.randn(2, 9, DIM)
    padding = torch.tensor([0, 4])
    real = torch.arange(9) >= padding[:, None]
    position_ids = (torch.arange(9) - padding[:, None]).clamp_min(0)
    # Padding may attend to itself, or its rows would be empty; nobody reads them.
    mask = real[:, None, None, :] | torch.eye(9, dtype=torch.bool)
    if cached:
        cache = KVCache()
        output = torch.cat(
            [
                layer(x[:, :6], attn_mask=mask[:, :, :6, :6], position_ids=position_ids[:, :6], cache=cache),
                *(
                    layer(x[:, i : i + 1], attn_mask=mask[:, :, i : i + 1, : i + 1],
                          position_ids=position_ids[:, i : i + 1], cache=cache)
                    for i in range(6, 9)
                ),
            ],
            dim=1,
        )  # fmt: skip
    else:
        output = layer(x, attn_mask=mask, position_ids=position_ids)
    torch.testing.assert_close(output[:1], layer(x[:1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output[1:, 4:], layer(x[1:, 4:]), rtol=1e-5, atol=1e-5)


@variants
@pytest.mark.parametrize("options", [{}, {"sliding_window": 3}], ids=str)
def test_packed_documents_equal_separate_ones(variant: str, options: dict[str, Any]) -> None:
    layer, lengths = build(variant, **options), [3, 1, 5]
    x = torch.randn(2, sum(lengths), DIM)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    position_ids = torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)
    packed = layer(x, attn_mask=document[:, None] == document, position_ids=position_ids)
    separate = torch.cat([layer(part) for part in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)
    cu_seqlens = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    torch.testing.assert_close(layer(x[:1], cu_seqlens=cu_seqlens), separate[:1], rtol=1e-5, atol=1e-5)
    restarted = layer(x[:1], cu_seqlens=cu_seqlens, position_ids=position_ids[:1])
    torch.testing.assert_close(restarted, separate[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "cu_seqlens", "cached", "message"),
    [
        (1, [0, 3, 5], True, "cu_seqlens packs whole sequences, and a cache goes on with one"),
        (2, [0, 3, 5], False, "the batch must be 1"),
        (1, [0.0, 5.0], False, "cu_seqlens must be integers"),
        (1, [[0, 5]], False, "cu_seqlens must be integers"),
        (1, [], False, "cu_seqlens must be integers"),
    ],
)
def test_impossible_cu_seqlens(batch: int, cu_seqlens: Any, cached: bool, message: str) -> None:
    cache = KVCache() if cached else None
    with pytest.raises(ValueError, match=message):
        build("both")(torch.randn(batch, 5, DIM), cu_seqlens=torch.tensor(cu_seqlens), cache=cache)


@variants
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "sliding_window": 4}], ids=str)
def test_the_future_changes_nothing(variant: str, options: dict[str, Any]) -> None:
    layer, x = build(variant, **options), torch.randn(2, 9, DIM)
    other = x.clone()
    other[:, 5:] = torch.randn(2, 4, DIM) * 10
    before, after = layer(x), layer(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_bidirectional_layer_with_cache_sees_all_so_far() -> None:
    layer, x, cache = build("both", is_causal=False), torch.randn(1, 6, DIM), KVCache()
    layer(x[:, :4], cache=cache)
    torch.testing.assert_close(layer(x[:, 4:], cache=cache), layer(x)[:, 4:], rtol=1e-5, atol=1e-5)


def test_qk_norm_does_not_cancel_the_query_temperature() -> None:
    layer = build("both", qk_norm=True, selective=SelectiveConfig(value=False))
    x = torch.randn(1, 7, DIM)
    before = layer(x)
    for parameter in layer.temperatures["query"].parameters():
        with torch.no_grad():
            parameter.add_(1.0)
            assert (layer(x) - before).abs().max() > 1e-3
            parameter.sub_(1.0)


@pytest.mark.parametrize("token", ["shared", "mlp", "linear", "frequency", "constant", "none"])
def test_every_new_parameter_receives_a_gradient_and_counts(token: Any) -> None:
    layer = SelfAttention(
        DIM, HEADS, 2, exclusive="learned", selective=SelectiveConfig(token=token, key=True, position_init=0.1)
    )
    given = {"x": torch.randn(2, 7, DIM), "token_frequency": torch.randn(2, 7)}
    new = {name: parameter for name, parameter in layer.named_parameters() if "temp" in name or "exclusive" in name}
    with torch.no_grad():
        for name, parameter in new.items():
            if token == "mlp" and name.endswith(".weight") and "feature" not in name:
                parameter.fill_(0.2)
    before = layer(**given)
    before.square().sum().backward()
    assert len(new) == 1 + 3 * {"mlp": 3, "none": 1}.get(token, 2)
    for name, parameter in new.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name
        with torch.no_grad():
            parameter.add_(1.0)
            assert (layer(**given) - before).abs().max() > 1e-4, name
            parameter.sub_(1.0)


def test_starts_as_plain_attention() -> None:
    torch.manual_seed(1)
    plain = SelfAttention(DIM, HEADS, exclusive=None)
    upgraded = SelfAttention(
        DIM, HEADS, exclusive="learned", selective=SelectiveConfig(position=False, value_position=False)
    )
    missing = upgraded.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all("temperatures" in name or "exclusive" in name for name in missing)
    x = torch.randn(2, 7, DIM)
    torch.testing.assert_close(upgraded(x), plain(x), rtol=0, atol=1e-7)


def test_dropout_in_training_only() -> None:
    layer, x = build("both", dropout=0.5), torch.randn(2, 7, DIM)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("variant", ["exclusive", "both"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(variant: str, x_dtype: torch.dtype) -> None:
    layer, x = build(variant), torch.randn(2, 7, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x.to(x_dtype))
    assert (output.float() - layer(x)).norm() < 0.05 * layer(x).norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer, x = build("both", qk_norm=True), torch.randn(2, 7, DIM)
    expected = layer(x)
    output = layer.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("variant", ["both", "linear"])
def test_compiled_equals_eager(variant: str) -> None:
    layer, x = build(variant, sliding_window=4, qk_norm=True), torch.randn(2, 7, DIM)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for part in (compiled, layer):
        part(x).square().sum().backward()
        if part is compiled:
            got = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}  # type: ignore[union-attr]
            layer.zero_grad()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((24, 6, 4), {}, "num_heads=6 must be a multiple of num_kv_heads=4"),
        ((24, 6, 0), {}, "num_kv_heads=0"),
        ((25, 6), {}, "dim=25 must be a multiple of num_heads=6, or pass head_dim"),
        ((24, 6), {"sliding_window": 0}, "sliding_window must be at least 1"),
        ((24, 6), {"head_dim": 5}, "rotary embedding needs an even head_dim, got 5"),
    ],
)
def test_impossible_arguments(arguments: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfAttention(*arguments, **options)


def test_additive_mask_is_refused() -> None:
    with pytest.raises(TypeError, match=r"attn_mask must be boolean .*got torch.float32"):
        build("both")(torch.randn(1, 3, DIM), attn_mask=torch.zeros(3, 3))


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        build("both", backend="flash")(torch.randn(1, 3, DIM))


@pytest.mark.parametrize("module", [SelfAttention, Exclusive, Temperature])
def test_what_a_call_returns_is_known_to_type_checkers(module: type[torch.nn.Module]) -> None:
    assert get_type_hints(module)["__call__"] == Callable[..., Tensor]


class TestExclusive:
    @pytest.mark.parametrize("strength", [True, "strong", float("inf"), None])
    def test_impossible_strength(self, strength: Any) -> None:
        with pytest.raises(ExselError, match="strength must be a finite number or 'learned'"):
            Exclusive(4, strength)

    def test_fixed_has_no_parameters(self) -> None:
        assert not list(Exclusive(4, 0.5).parameters())

    @pytest.mark.parametrize("strength", [1.0, 0.5, "learned"])
    def test_formula(self, strength: Any) -> None:
        module, y, v = Exclusive(4, strength), torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
        alpha: Any = strength
        if module.strength_logit is not None:
            with torch.no_grad():
                module.strength_logit.copy_(torch.tensor([-1.0, 0.0, 0.5, 3.0]))
            alpha = torch.tanh(module.strength_logit)[:, None, None]
        unit = F.normalize(v, dim=-1).repeat_interleave(2, dim=1)
        torch.testing.assert_close(module(y, v), y - alpha * (y * unit).sum(-1, keepdim=True) * unit)

    def test_learned_starts_at_nothing(self) -> None:
        module, y, v = Exclusive(4, "learned"), torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
        z = module(y, v)
        torch.testing.assert_close(z, y, rtol=0, atol=1e-6)
        z.square().sum().backward()
        assert module.strength_logit is not None
        assert module.strength_logit.grad is not None
        assert (module.strength_logit.grad.abs() > 1e-3).all()
        with torch.no_grad():
            module.strength_logit.fill_(1.0)
        module.reset_parameters()
        assert not module.strength_logit.any()


def test_cache_starts_empty() -> None:
    cache = KVCache()
    assert (cache.seen, cache.key, cache.value) == (0, None, None)


def test_cached_values_are_scaled_and_own_values_are_not() -> None:
    """τ_v → 0 takes every value out of the mixture; the own value's direction stays."""
    layer, x, cache = build("both"), torch.randn(1, 6, DIM), KVCache()
    with torch.no_grad():
        layer.temperatures["value"].weight.zero_()
        layer.temperatures["value"].position_logit.fill_(-math.inf)
        layer(x, cache=cache)
        assert cache.value is not None
        value = layer.v_proj(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        torch.testing.assert_close(cache.value, value)
        layer.temperatures["value"].weight.fill_(0.3)
        scaled = KVCache()
        layer(x, cache=scaled)
    assert scaled.value is not None
    tau = 1 + torch.tanh((F.gelu(value) * 0.3).sum(-1, keepdim=True))
    torch.testing.assert_close(scaled.value, value * tau)


def test_chunks_of_every_size() -> None:
    """Each way to cut six tokens, with a window that the chunks straddle."""
    layer, x = build("both", sliding_window=3), torch.randn(1, 6, DIM)
    whole = layer(x)
    for cuts in itertools.product([False, True], repeat=5):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), 6]
        cache = KVCache()
        parts = [layer(x[:, a:b], cache=cache) for a, b in itertools.pairwise(edges)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
