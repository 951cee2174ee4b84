"""``nn.MultiheadAttention`` and the layers of PyTorch's that contain one."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exsel
from exsel import ExclusiveConfig
from exsel.upgrading.multihead import multihead_forward as upgraded_forward
from upgrading.layer_checks import IDENTITY, assert_close, check_alike, check_model, randomise, run

B, T, E, H = 3, 5, 16, 4


class Attending(nn.Module):
    """A model with one bare ``nn.MultiheadAttention``."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, H, **options)  # type: ignore[arg-type]
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor, value: Tensor | None = None, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        return self.attention(x, x, x if value is None else value, **kwargs)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _padding() -> Tensor:
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[0, 3:] = True
    return padding


MASKS: dict[str, dict[str, object]] = {
    "no mask": {},
    "padding": {"key_padding_mask": _padding()},
    "causal": {"attn_mask": torch.ones(T, T, dtype=torch.bool).triu(1)},
    "causal hint": {"attn_mask": torch.ones(T, T, dtype=torch.bool).triu(1), "is_causal": True},
    "biases of heads": {"attn_mask": torch.randn(B * H, T, T)},
    "causal and padding": {"attn_mask": torch.ones(T, T, dtype=torch.bool).triu(1), "key_padding_mask": _padding()},
}
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "both and separate": {"add_bias_kv": True, "add_zero_attn": True, "vdim": 6, "batch_first": True},
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_identity_settings_change_nothing(
    mask: dict[str, object], options: dict[str, object], need_weights: bool
) -> None:
    model = Attending(**options).eval()
    shape = (B, T) if options.get("batch_first") else (T, B)
    x = torch.randn(*shape, E)
    value = torch.randn(*shape, 6) if "vdim" in options else None
    for average in (True, False):

        def call(average: bool = average) -> object:
            return model(x, value, need_weights=need_weights, average_attn_weights=average, **mask)

        with torch.enable_grad():  # off PyTorch's fast path
            plain = [item.detach() for item in call() if item is not None]  # type: ignore[attr-defined]
        exsel.upgrade(model, **IDENTITY)
        assert_close(run(call), plain)
        exsel.downgrade(model)


@pytest.mark.parametrize("need_weights", [True, False])
def test_unbatched(need_weights: bool) -> None:
    model, x = Attending(), torch.randn(T, E)
    mask = torch.randn(H, T, T)
    check_model(model, lambda: model(x, attn_mask=mask, need_weights=need_weights))
    exsel.upgrade(model, exclusive=True, selective=True)
    alone, _ = model(x, attn_mask=mask, key_padding_mask=_padding()[0], need_weights=need_weights)
    in_batch, _ = model(x.unsqueeze(1), attn_mask=mask, key_padding_mask=_padding()[:1], need_weights=need_weights)
    assert_close([alone], [in_batch.squeeze(1)])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_mechanisms(options: dict[str, object]) -> None:
    model = Attending(**options)
    x = torch.randn(B, T, E)
    value = torch.randn(B, T, 6) if "vdim" in options else None
    check_model(model, lambda: model(x, value))


@pytest.mark.parametrize("need_weights", [True, False])
def test_tokens_alike_leave_nothing(need_weights: bool) -> None:
    model = Attending(batch_first=True)
    check_alike(model, lambda x: model(x, need_weights=need_weights), (B, T, E))


@pytest.mark.parametrize("extra", [False, True], ids=["tokens only", "with bias_kv and zero"])
def test_the_formula_written_out(extra: bool) -> None:
    model = Attending(batch_first=True, add_bias_kv=extra, add_zero_attn=extra).eval()
    x, mask = torch.randn(B, T, E), torch.ones(T, T, dtype=torch.bool).triu(1)
    exsel.upgrade(model, exclusive=True, selective=True)
    randomise(model)
    layer, temperatures = model.attention, model.attention.exsel.temperatures  # type: ignore[union-attr]
    output, _ = model(x, attn_mask=mask, need_weights=False)

    q, k, v = (
        part.unflatten(-1, (H, -1)).transpose(1, 2)
        for part in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    )
    n = torch.arange(1, T + 1)
    tau_q, tau_v = (
        torch.tanh((F.gelu(states) * temperature.weight[:, None]).sum(-1))
        + 1
        + torch.sigmoid(temperature.position_logit)[:, None] * n.log()
        for states, temperature in ((q, temperatures.query), (v, temperatures.value))
    )
    mixed_k, mixed_v = k, v * tau_v[..., None]
    if extra:
        zeros = torch.zeros(B, H, 1, E // H)
        mixed_k, mixed_v = (
            torch.cat([states, bias.view(1, H, 1, -1).expand(B, -1, -1, -1), zeros], 2)
            for states, bias in ((mixed_k, layer.bias_k), (mixed_v, layer.bias_v))
        )
        mask = F.pad(mask, (0, 2))
    scores = (q * tau_q[..., None]) @ mixed_k.transpose(-2, -1) / (E // H) ** 0.5
    y = scores.masked_fill(mask, -torch.inf).softmax(-1) @ mixed_v
    direction = F.normalize(v, dim=-1)
    z = y - (y * direction).sum(-1, keepdim=True) * direction
    assert_close([output], [layer.out_proj(z.transpose(1, 2).flatten(2))])


def test_positions_are_counted_without_padding() -> None:
    model = Attending(batch_first=True).eval()
    exsel.upgrade(model, selective=True)
    randomise(model)
    x = torch.randn(1, T, E)
    alone, _ = model(x)
    padded, _ = model(
        torch.cat([torch.randn(1, 2, E), x], 1), key_padding_mask=torch.tensor([[True] * 2 + [False] * T])
    )
    assert_close([padded[:, 2:]], [alone])


def test_values_of_their_own_tensor() -> None:
    """As DETR calls it: positions are added to queries and keys and not to values."""
    model = Attending(batch_first=True).eval()
    exsel.upgrade(model, exclusive=True)
    x, value = torch.randn(B, T, E), torch.randn(B, 1, E).expand(B, T, E)
    output, _ = model(x, value)
    assert_close([output], [model.attention.out_proj.bias.expand(B, T, E)], 1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_has_no_fast_path(norm_first: bool, grad: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norm_first: no nested tensors
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True, norm_first=norm_first), 2
        )
    x = torch.randn(B, T, E)
    check_model(encoder, lambda: encoder(x))
    exsel.upgrade(encoder, exclusive=True, selective=True)
    randomise(encoder)
    trained = encoder.train()(x)
    with torch.set_grad_enabled(grad):
        assert_close([encoder.eval()(x)], [trained])
        assert_close([encoder.layers[0](x)], [encoder.layers[0].train()(x)])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_packs_a_padded_batch() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True), 2)
    exsel.upgrade(encoder, exclusive=True, selective=True)
    randomise(encoder)
    x, padding = torch.randn(B, T, E), _padding()
    trained = encoder.train()(x, src_key_padding_mask=padding)
    with torch.no_grad():
        packed = encoder.eval()(x, src_key_padding_mask=padding)
    assert_close([packed[~padding]], [trained[~padding]])
    assert (packed[padding] == 0).all()  # PyTorch's packing did happen


def test_fast_path_of_the_layer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Attending(batch_first=True).eval()
    x = torch.randn(B, T, E)
    taken = []
    native = torch._native_multi_head_attention  # type: ignore[attr-defined]
    monkeypatch.setattr(
        torch, "_native_multi_head_attention", lambda *arguments: taken.append(True) or native(*arguments)
    )
    with torch.no_grad():
        model(x)
        assert taken  # by the plain layer
        taken.clear()
        exsel.upgrade(model, exclusive=True)
        model(x)
    assert not taken


def test_decoder_keeps_its_cross_attention() -> None:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(E, H, 32, dropout=0.0, batch_first=True), 2)
    x, memory = torch.randn(B, T, E), torch.randn(B, T, E)
    check_model(decoder, lambda: decoder(x, memory))
    exsel.upgrade(decoder, exclusive=True)
    assert type(decoder.layers[0].multihead_attn) is nn.MultiheadAttention
    assert hasattr(decoder.layers[1].self_attn, "exsel")


def test_a_layer_for_other_keys_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.MultiheadAttention(E, H)
            self.second = nn.MultiheadAttention(E, H, kdim=6, vdim=6)

    model = exsel.upgrade(Both(), exclusive=True)
    assert type(model.second) is nn.MultiheadAttention
    assert type(model.first).forward is upgraded_forward


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attn_mask": torch.zeros(T, T + 1)}, "attn_mask must be"),
        ({"attn_mask": torch.zeros(B, T, T)}, "attn_mask must be"),
        ({"attn_mask": torch.zeros(T, T, dtype=torch.long)}, "boolean or floating-point"),
        ({"key_padding_mask": torch.zeros(T, B)}, "key_padding_mask must be"),
        ({"is_causal": True}, "pass the mask too"),
        ({"value": torch.randn(B, T + 1, E)}, "value must have the batch and tokens of query"),
    ],
)
def test_bad_calls(kwargs: dict[str, object], message: str) -> None:
    model = exsel.upgrade(Attending(batch_first=True), exclusive=True)
    with pytest.raises(RuntimeError, match=message):
        model(torch.randn(B, T, E), **kwargs)


def test_cross_attention_is_refused_at_the_call() -> None:
    model = exsel.upgrade(Attending(), exclusive=True)
    x, other = torch.randn(T, B, E), torch.randn(T, B, E)
    with pytest.raises(RuntimeError, match="cross-attention has no own values"):
        model.attention(x, other, other)


def test_a_subclass_with_its_own_forward_is_refused() -> None:
    class Other(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x)[0]  # type: ignore[no-any-return]

    model = nn.Sequential(Other(E, H))
    with pytest.raises(ValueError, match="Other has a forward of its own"):
        exsel.upgrade(model, exclusive=True)
    assert type(model[0]) is Other


def test_compiles_whole() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, batch_first=True), 1).eval()
    exsel.upgrade(encoder, exclusive=ExclusiveConfig(strength="learned"), selective=True)
    x = torch.randn(B, T, E)
    with torch.no_grad():
        assert_close([torch.compile(encoder, fullgraph=True, backend="eager")(x)], [encoder(x)])
