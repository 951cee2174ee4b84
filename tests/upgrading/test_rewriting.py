from __future__ import annotations

import traceback

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention

import exsel
from exsel.nn.projections import Projections
from exsel.upgrading.rewriting import rewrite
from exsel.upgrading.sources import RewritingError

LAYOUT = Projections.read("q_proj k_proj v_proj")


class Halves(nn.Module):
    """Its attention lies in a method with a default, a keyword and a nested function."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 4
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))

    def attend(self, x: Tensor, scale: float = 1.0, *, causal: bool = True) -> Tensor:
        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (2, 4)).transpose(1, 2)

        query, key, value = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)

    def forward(self, x: Tensor, explode: bool = False) -> Tensor:
        """Attend."""
        y = self.attend(x, 0.5, causal=True)
        if explode:
            raise KeyError("boom")
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class WithSuper(Halves):
    def forward(self, x: Tensor, explode: bool = False) -> Tensor:
        y = self.attend(x)
        assert super().__init__ is not None
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def test_a_method_that_attends_is_rewritten_beside_the_original() -> None:
    methods = rewrite(LlamaAttention, LAYOUT)
    assert set(methods) == {"forward", "exsel_read"}
    methods = rewrite(Halves, LAYOUT)
    assert set(methods) == {"forward", "_exsel_attend", "exsel_read"}
    assert methods["forward"].__globals__ is Halves.forward.__globals__
    assert Halves.forward.__name__ == "forward"


@pytest.mark.parametrize("cls", [Halves, WithSuper])
def test_the_rewritten_layer_computes_both_mechanisms(cls: type[Halves]) -> None:
    torch.manual_seed(0)
    layer, x = cls(), torch.randn(2, 5, 8)
    plain = layer(x)
    exsel.upgrade(nn.Sequential(layer), exclusive=True, selective=True)
    z = layer(x)
    assert not torch.allclose(z, plain)
    # The first token attends to itself alone.
    torch.testing.assert_close(z[:, 0], layer.o_proj.bias.expand(2, -1))
    z.sum().backward()
    assert layer.exsel.temperatures["query"].weight.grad.abs().max() > 0


def test_a_traceback_shows_the_original_line() -> None:
    layer = Halves()
    exsel.upgrade(nn.Sequential(layer), exclusive=True)
    with pytest.raises(KeyError, match="boom") as caught:
        layer(torch.randn(1, 3, 8), explode=True)
    assert 'raise KeyError("boom")' in traceback.format_tb(caught.tb)[-1]


def test_a_class_without_source_is_refused() -> None:
    namespace: dict[str, type[nn.Module]] = {}
    exec(
        "import torch\n"
        "class Attention(torch.nn.Module):\n"
        "    def forward(self, q, k, v):\n"
        "        return torch.nn.functional.scaled_dot_product_attention(q, k, v)\n",
        namespace,
    )
    with pytest.raises(RewritingError, match="source"):
        rewrite(namespace["Attention"], Projections({}))
