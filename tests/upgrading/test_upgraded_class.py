from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exsel
from exsel.upgrading.upgraded_class import check_whole
from upgrading.upgraded_models import llama, logits

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(*(states.unsqueeze(1) for states in (self.q_proj(x), self.k_proj(x), self.v_proj(x))))

    def mixed(self, *states: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*states).squeeze(1)


def fused(self: Any, x: Tensor) -> Tensor:
    """What a hub of kernels puts in the place of a forward pass."""
    return self.v_proj(x)  # type: ignore[no-any-return]


def _on_the_instance(layer: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(vars(layer), "forward", types.MethodType(fused, layer))


def _on_its_class(layer: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(layer), "forward", fused)


def _on_the_original_class(layer: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Own, "forward", fused)


def _a_method_of_the_instance(layer: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(vars(layer), "mixed", fused)


def _a_method_of_the_original_class(layer: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Own, "mixed", fused)


def _wrapping_the_original(layer: Any, patch: pytest.MonkeyPatch) -> None:
    @functools.wraps(Own.forward)
    def fused(*args: Any) -> Tensor:
        return Own.forward(layer, *args)

    patch.setitem(vars(layer), "forward", fused)


@pytest.mark.parametrize(
    "replace",
    [
        _on_the_instance,
        _on_its_class,
        _on_the_original_class,
        _a_method_of_the_instance,
        _a_method_of_the_original_class,
        _wrapping_the_original,
    ],
)
def test_what_replaces_a_forward_pass_after_an_upgrade(
    replace: Callable[[Any, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    expected = model(X)
    replace(model[0], monkeypatch)
    with pytest.raises(RuntimeError, match=r"replaced by \S*test_upgraded_class\.\S*fused"):
        model(X)
    with pytest.raises(exsel.UpgradeError, match=r"0 is upgraded, and .* replaced by \S*test_upgraded_class\.\S*fused"):
        check_whole(model)
    # The next one is read anew, or refused.
    if replace in (_on_the_original_class, _a_method_of_the_original_class):
        with pytest.raises(exsel.UpgradeError, match=r"test_upgraded_class\.fused|no self-attention"):
            exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    else:
        assert not torch.equal(exsel.upgrade(Own(), exclusive=True)(X), expected)
    monkeypatch.undo()
    assert torch.equal(model(X), expected)
    check_whole(model)


def _calling(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x)


def _through_the_class(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: type(layer).forward(layer, x)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda layer: _calling(layer.forward),
        lambda layer: functools.wraps(layer.forward)(_calling(layer.forward)),
        lambda layer: functools.partial(layer.forward),
        lambda layer: torch.compile(layer.forward, backend="eager"),
    ],
)
def test_what_calls_the_upgraded_forward_pass_goes_on(wrapped: Callable[[Any], Any]) -> None:
    model = exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    expected = model(X)
    model[0].forward = wrapped(model[0])
    check_whole(model)
    assert torch.allclose(model(X), expected, atol=1e-6)
    with pytest.raises(exsel.UpgradeError, match="take that back first"):
        exsel.downgrade(model)


def test_a_call_shows_what_cannot_be_seen() -> None:
    model = exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    expected = model(X)
    model[0].forward = _through_the_class(model[0])
    with pytest.raises(exsel.UpgradeError, match="_through_the_class"):
        check_whole(model)
    assert torch.equal(model(X), expected)
    check_whole(model)


def test_an_upgraded_layer_given_another_class() -> None:
    model = exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    model[0].__class__ = Own
    with pytest.raises(exsel.UpgradeError, match="given the class Own since"):
        check_whole(model)


def test_a_class_around_the_upgraded_one() -> None:
    """As fully_shard puts one there."""
    model = exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    expected = model(X)
    model[0].__class__ = type("FSDPOwn", (type(model[0]),), {})
    assert torch.equal(model(X), expected)
    check_whole(model)
    with pytest.raises(exsel.UpgradeError, match="were given another class"):
        exsel.downgrade(model)


def test_a_replaced_forward_pass_in_a_compiled_model() -> None:
    model = exsel.upgrade(nn.Sequential(Own()), exclusive=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(X)
    original = model[0].forward
    model[0].forward = _calling(original)
    assert torch.allclose(compiled(X), expected, atol=1e-6)
    model[0].forward = types.MethodType(fused, model[0])
    with pytest.raises(Exception, match="computes without its mechanisms"):
        torch.compile(model, backend="eager")(X)


def test_a_model_is_not_saved_as_what_it_does_not_compute(tmp_path: Any) -> None:
    model = llama()
    expected = logits(model)
    layer = model.model.layers[1].self_attn
    layer.forward = types.MethodType(type(layer).exsel_original.forward, layer)
    with pytest.raises(exsel.UpgradeError, match=r"model\.layers\.1\.self_attn .*LlamaAttention\.forward"):
        model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="LlamaAttention was replaced"):
        logits(model)
    del layer.forward
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path)


def test_a_patched_class_is_named_before_an_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnAttention(Own):
        pass

    original = Own.forward

    def doubled(self: Any, x: Tensor) -> Tensor:
        return 2 * original(self, x)

    for layer in (Own(), OwnAttention()):
        exsel.downgrade(exsel.upgrade(layer, exclusive=True))  # the class is known from now on
        monkeypatch.setattr(type(layer), "forward", doubled)
        answer = exsel.support(layer)
        assert "test_a_patched_class_is_named_before_an_upgrade.<locals>.doubled" in answer.refusals[0]
        assert "writes its attention out" not in str(answer)
        monkeypatch.undo()


def test_a_patch_that_attends_is_what_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Own()
    exsel.downgrade(exsel.upgrade(layer, exclusive=True))

    def forward(self: Any, x: Tensor) -> Tensor:
        states = (project(x).unsqueeze(1) for project in (self.q_proj, self.k_proj, self.v_proj))
        return F.scaled_dot_product_attention(*states).squeeze(1) + 1

    monkeypatch.setattr(Own, "forward", forward)
    exsel.upgrade(layer, exclusive=True)
    torch.testing.assert_close(layer(X[:, :1]), torch.ones(2, 1, 8))


def test_a_replaced_method_of_the_instance_is_named_before_an_upgrade() -> None:
    layer: Any = Own()
    layer.mixed = functools.partial(fused, layer)
    with pytest.raises(exsel.UpgradeError, match=r"its mixed was replaced on the instance by functools\.partial"):
        exsel.upgrade(layer, exclusive=True)


def test_a_patched_multihead_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    original = nn.MultiheadAttention.forward

    @functools.wraps(original)
    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.MultiheadAttention, "forward", traced)
    with pytest.raises(exsel.UpgradeError, match=r"nn\.MultiheadAttention was replaced by \S+\.traced"):
        exsel.upgrade(layer, exclusive=True)
    monkeypatch.undo()
    exsel.upgrade(layer, exclusive=True)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", traced)
    with pytest.raises(RuntimeError, match=r"was replaced by \S+\.traced"):
        layer(X, X, X)


def test_a_projection_that_no_temperature_reads_stays_as_it_is() -> None:
    layer: Any = llama(exclusive=True, selective=None).model.layers[0].self_attn
    hidden_states, packed = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    # A layer whose projections vLLM has merged hands each result in.
    assert layer.exsel.begin().read("q_proj", hidden_states, packed) is packed
