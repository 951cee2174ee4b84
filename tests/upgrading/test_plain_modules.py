"""Modules of one's own that call ``scaled_dot_product_attention``, under whatever name they know it."""

from __future__ import annotations

import copy
import linecache
import math
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import exsel
from exsel import ExclusiveConfig
from exsel.upgrading.attention_layers import targets
from upgrading.layer_checks import check_alike, check_model

B, T, E, H = 2, 5, 16, 4
FORBIDDEN = "cross-attention has no own values"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


def _attended(x: Tensor) -> Tensor:
    return attend(x, x, x)


class CausalSelfAttention(nn.Module):
    """As nanoGPT has it."""

    def __init__(self, flash: bool = True) -> None:
        super().__init__()
        self.c_attn = nn.Linear(E, 3 * E)
        self.c_proj = nn.Linear(E, E)
        self.n_head, self.n_embd, self.dropout, self.flash = H, E, 0.0, flash
        self.register_buffer("bias", torch.ones(9, 9).tril().view(1, 1, 9, 9))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        if self.flash:
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=None, dropout_p=self.dropout if self.training else 0, is_causal=True
            )
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))  # type: ignore[index]
            att = F.softmax(att, dim=-1)
            y = att @ v
        y = y.transpose(1, 2).contiguous().view(b, t, c)
        return self.c_proj(y)  # type: ignore[no-any-return]


class ByName(nn.Module):
    """The function by another name, called by keywords and in a method beside forward; separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(E, E) for _ in range(3))
        self.out_proj = nn.Linear(E, E)
        self.num_heads = H

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(query=_heads(q), key=_heads(k), value=_heads(v)).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        mixed = self._mix(self.q_proj(x), self.k_proj(source), self.v_proj(source))
        return self.out_proj(mixed)  # type: ignore[no-any-return]


class Interleaved(nn.Module):
    """A fused projection with query, key and value of one head after the other, normed, and heads in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.norm = nn.Linear(E, 3 * E), nn.Linear(E, E), nn.LayerNorm(E // H)
        self.num_heads = H

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _heads(self.qkv(x)).chunk(3, dim=-1)
        folded = (states.flatten(0, 1) for states in (self.norm(q), self.norm(k), v))
        y = F.scaled_dot_product_attention(*folded).unflatten(0, (-1, H))
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SingleHead(nn.Module):
    """Without a number of heads anywhere, and projections of unusual names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(E, E) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.a(x), self.b(x), self.c(x))
        return self.d(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("layer", [CausalSelfAttention, ByName])
def test_supported(layer: type[nn.Module]) -> None:
    model = nn.Sequential(layer(), nn.LayerNorm(E), layer())
    x = torch.randn(B, T, E)
    check_model(model, lambda: model(x))
    check_alike(model[0], model[0], (B, T, E))


def test_folded_heads_and_another_packing() -> None:
    model = nn.Sequential(Interleaved(), Interleaved())
    (first, _) = targets(model)
    assert first.projections is not None
    assert first.projections.packings == {"qkv": "heads"}
    x = torch.randn(B, T, E)
    check_model(model, lambda: model(x))
    check_alike(model[0], model[0], (B, T, E))


def test_order_of_a_fused_projection_that_no_packing_has() -> None:
    class KeysFirst(CausalSelfAttention):
        def forward(self, x: Tensor) -> Tensor:
            k, q, v = (_heads(part) for part in self.c_attn(x).split(self.n_embd, dim=2))
            return self.c_proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    model = nn.Sequential(KeysFirst())
    with pytest.raises(ValueError, match="in which order KeysFirst packs"):
        exsel.upgrade(model, selective=True)
    x = torch.randn(B, T, E)
    plain = model(x)
    exsel.upgrade(model, exclusive=True)
    assert (model(x) - plain).abs().max() > 1e-3


class Noisy(CausalSelfAttention):
    """Its heads are numbers in its code, and its forward pass leaves traces in it and in the random state."""

    def __init__(self, heads: int | None = None) -> None:
        super().__init__()
        del self.n_head
        if heads is not None:
            self.num_heads = heads
        self.calls, self.seen = 0, [0]
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3 * E)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        packed = self.drop(self.c_attn(x)) + 0 * torch.rand(())
        packed = packed + 0 * self.norm(packed.mT).mT
        q, k, v = (_heads(part) for part in packed.split(self.n_embd, dim=2))
        return self.c_proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_nothing_is_changed_to_find_out_how_a_projection_is_packed() -> None:
    layer = Noisy(H)
    called: list[int] = []
    layer.c_attn.register_forward_hook(lambda *_: called.append(1))
    layer.c_attn.register_forward_pre_hook(lambda *_: called.append(1))
    before = copy.deepcopy(layer.state_dict())
    random, modes = torch.get_rng_state(), [module.training for module in layer.modules()]
    answer = exsel.support(layer)
    assert answer.layers[0].selective == "yes"  # so it was tried
    assert torch.equal(torch.get_rng_state(), random)
    assert (layer.calls, layer.seen, called) == (0, [0], [])
    assert [module.training for module in layer.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    exsel.upgrade(layer, selective=True)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_reason_for_a_root_whose_heads_are_numbers_in_its_code() -> None:
    layer = Noisy()
    answer = exsel.support(layer)
    assert [(row.index, row.name, row.exclusive) for row in answer.layers] == [(0, "", "yes")]
    assert answer.layers[0].selective == "the heads of Noisy are not known here"
    with pytest.raises(ValueError, match="the heads of Noisy are not known here"):
        exsel.upgrade(layer, selective=True)
    exsel.upgrade(layer, exclusive=True)


def test_unknown_projections_are_exclusive_only() -> None:
    model = nn.Sequential(SingleHead())
    check_alike(model, model, (B, T, E))
    exsel.downgrade(model)
    with pytest.raises(ValueError, match="the projections of SingleHead are not known"):
        exsel.upgrade(model, exclusive=True, selective=True)
    assert type(model[0]) is SingleHead


def test_switched_to_the_branch_written_out() -> None:
    model = nn.Sequential(CausalSelfAttention(flash=False))
    with pytest.raises(ValueError, match="writes its attention out when flash=False"):
        exsel.upgrade(model, exclusive=True)
    model[0].flash = True
    exsel.upgrade(model, exclusive=True)
    model[0].flash = False
    with pytest.raises(RuntimeError, match="took a path around its attention function"):
        model(torch.randn(B, T, E))


def test_both_in_one_pass_is_refused() -> None:
    class Twice(SingleHead):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y + torch.softmax(y @ y.mT, -1) @ F.scaled_dot_product_attention(y, y, y)

    class WithParent(SingleHead):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + F.scaled_dot_product_attention(y, y, y)

    for layer in (Twice(), WithParent()):
        with pytest.raises(ValueError, match="writes its attention out in code that is not known here"):
            exsel.upgrade(nn.Sequential(layer), exclusive=True)


def test_attention_in_a_function_beside_the_class_is_not_overlooked() -> None:
    class Mixing(SingleHead):
        def forward(self, x: Tensor) -> Tensor:
            return _attended(x)

    model = nn.Sequential(Mixing(), nn.Sequential(SingleHead()))
    assert [layer.name for layer in exsel.support(model).layers] == ["0", "1.0"]
    with pytest.raises(ValueError, match="Mixing attends in a function that is no method of it"):
        exsel.upgrade(model, exclusive=True)


def test_cross_attention_at_the_call() -> None:
    model = nn.Sequential(ByName())
    exsel.upgrade(model, exclusive=True)
    x = torch.randn(B, T, E)
    with pytest.raises(RuntimeError, match=FORBIDDEN):
        model[0](x, torch.randn(B, T, E))

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(E, E)

        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return self.proj(attend(query, key, key))  # type: ignore[no-any-return]

    asking = exsel.upgrade(nn.ModuleList([Asking()]), exclusive=True)[0]
    asking(x, x)
    with pytest.raises(RuntimeError, match=FORBIDDEN):
        asking(x, torch.randn(B, T, E))


def test_a_class_from_a_notebook() -> None:
    source = """
class Notebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.num_heads = nn.Linear(16, 48), 4

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).movedim(-3, 0).transpose(-2, -3)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
"""
    module = types.ModuleType("notebook")
    module.__dict__.update(nn=nn, F=F)
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(keepends=True), "<cell 1>")
    exec(compile(source, "<cell 1>", "exec"), module.__dict__)
    model = nn.Sequential(module.Notebook())
    x = torch.randn(B, T, E)
    check_model(model, lambda: model(x))


def test_a_class_without_source() -> None:
    namespace: dict[str, Any] = {"nn": nn, "F": F, "__name__": "nowhere"}
    exec(
        "class HiddenAttention(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(16, 16)\n"
        "    def forward(self, x):\n        return F.scaled_dot_product_attention(x, x, self.a(x))\n",
        namespace,
    )
    with pytest.raises(ValueError, match="HiddenAttention has no Python source to read"):
        exsel.upgrade(nn.Sequential(namespace["HiddenAttention"]()), exclusive=True)


def test_a_model_without_attention() -> None:
    with pytest.raises(ValueError, match="has no self-attention"):
        exsel.upgrade(nn.Sequential(nn.Linear(E, E), nn.ReLU()), exclusive=True)


def test_windows_in_a_dimension_of_their_own() -> None:
    class Windows(CausalSelfAttention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.c_attn(x).unflatten(-1, (3, H, -1)).movedim(-3, 0).movedim(-2, 2)
            return self.c_proj(attend(q, k, v).movedim(1, -2).flatten(-2))  # type: ignore[no-any-return]

    model = nn.Sequential(Windows())
    x = torch.randn(B, 3, T, E)
    plain = model(x)
    exsel.upgrade(model, exclusive=True)
    assert (model(x) - plain).abs().max() > 1e-3
    exsel.downgrade(model)
    for config in ({"selective": True}, {"exclusive": ExclusiveConfig(strength="learned")}):
        exsel.upgrade(model, **config)
        with pytest.raises(RuntimeError, match="which dimension holds the heads"):
            model(x)
        exsel.downgrade(model)
