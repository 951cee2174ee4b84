"""Which backend runs, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import exsel
from exsel import dispatch
from exsel.kernels import cpp

Q, K = torch.zeros(1, 4, 20, 16), torch.zeros(1, 2, 20, 16)
ONE = Q[:, :, :1]


def explain(**options: Any) -> str:
    return exsel.explain_backend(options.pop("query", Q), K, K, enable_gqa=True, **options)


def test_says_what_would_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "available", lambda: True)
    text = explain(is_causal=True, exclusive=True)
    assert text.startswith(
        "exclusive attention of 20 queries over 20 keys, causal, 4 heads over 2, head_dim 16, float32 on cpu: sdpa."
    )
    assert "Chosen on the CPU" in text
    assert "evidence/benchmarks/results" in text
    assert "projection in place on what it returns, by one loop in C++" in text


def test_says_why_there_is_no_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "available", lambda: False)
    monkeypatch.setattr(cpp, "why_not", lambda: "no C++ compiler was found")
    assert "several PyTorch operators, since no C++ compiler was found" in explain(exclusive=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "scaled_dot_product_attention as it is"),
        ({"exclusive": True, "dropout_p": 0.1}, "scaled_dot_product_attention, then the projection"),
        ({"exclusive": True, "backend": "reference"}, "Asked for by name.\nPlain PyTorch"),
        ({"exclusive": True, "attn_mask": torch.ones(20, 20, dtype=torch.bool)}, "masked"),
    ],
)
def test_describes_every_path(options: dict[str, Any], words: str) -> None:
    assert words in explain(**options)


def test_checks_what_attention_checks() -> None:
    with pytest.raises(ValueError, match="needs own_value"):
        explain(query=ONE, exclusive=True)
    with pytest.raises(ValueError, match="backend must be one of"):
        explain(backend="flash")


@pytest.mark.parametrize("name", ["attention", "exclude", "inverse_temperature"])
def test_an_explicit_backend_never_falls_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_interprets", lambda: False)
    run = {
        "attention": lambda: exsel.attention(Q, Q, Q, backend="triton"),
        "exclude": lambda: exsel.exclude(Q, K, backend="triton"),
        "inverse_temperature": lambda: exsel.inverse_temperature(Q, torch.ones(4, 16), backend="triton"),
    }[name]
    with pytest.raises(ValueError, match=r"backend='triton' cannot run this: .*need a GPU.*backend='sdpa'"):
        run()
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="Triton is not installed: pip install triton"):
        run()


@pytest.mark.skipif(not dispatch.HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 2, 20, 300),) * 3, {}, "head_dim of at most 256, got 300"),
        (((1, 2, 20, 16), (1, 2, 20, 16), (1, 2, 20, 8)), {}, "values as wide as queries"),
        (((1, 2, 20, 16),) * 3, {"dropout_p": 0.5}, "no dropout"),
        (((1, 2, 20, 16),) * 3, {"attn_mask": torch.ones(20, 20, dtype=torch.bool)}, "takes no attn_mask"),
    ],
)
def test_what_the_fused_kernels_refuse(shapes: Any, options: dict[str, Any], message: str) -> None:
    query, key, value = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        exsel.attention(query, key, value, backend="triton", **options)
    explained = exsel.explain_backend(query, key, value, **options)
    assert "triton cannot run it: " in explained
    assert message in explained


@pytest.mark.skipif(not dispatch.HAS_TRITON, reason="needs Triton")
def test_decoding_is_told_from_training() -> None:
    mask = torch.ones(1, 20, dtype=torch.bool)
    assert "decode kernel" in explain(query=ONE, attn_mask=mask, backend="triton")
    assert "fused kernel" in explain(exclusive=True, is_causal=True, backend="triton")


@pytest.mark.skipif(not dispatch.HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize("name", ["query", "own_value", "strength", "query_scale", "value_scale", "attn_mask"])
def test_the_decode_kernel_runs_only_where_nothing_is_differentiated(name: str) -> None:
    given = {
        "query": torch.randn(1, 4, 1, 16),
        "own_value": torch.randn(1, 2, 1, 16),
        "strength": torch.rand(4),
        "query_scale": torch.rand(1, 4, 1),
        "value_scale": torch.rand(1, 2, 20),
        "attn_mask": torch.randn(1, 20),
    }
    given[name].requires_grad_()
    query, mask = given.pop("query"), given.pop("attn_mask")
    options: dict[str, Any] = {**given, "exclusive": True, "enable_gqa": True, "backend": "triton"}
    with pytest.raises(ValueError, match="takes no attn_mask"):
        exsel.attention(query, K, K, attn_mask=mask, **options)
    with torch.no_grad():
        assert "decode kernel" in exsel.explain_backend(query, K, K, attn_mask=mask, **options)
    if name != "attn_mask":
        assert exsel.attention(query, K, K, **options).requires_grad


def test_every_rule_can_apply() -> None:
    """The last one always does, so that none is ever missing."""
    assert dispatch.RULES[-1].where == "anywhere else"
    assert len({rule.where for rule in dispatch.RULES}) == len(dispatch.RULES)
