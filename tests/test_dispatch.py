"""Which backend runs, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import exsel
from exsel.kernels import cpp

Q, K = torch.zeros(1, 4, 20, 16), torch.zeros(1, 2, 20, 16)
ONE = Q[:, :, :1]


def explain(**options: Any) -> str:
    return exsel.explain_backend(options.pop("query", Q), K, K, enable_gqa=True, **options)


def test_says_what_would_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "in_words", lambda: "one loop in C++")
    text = explain(is_causal=True, exclusive=True)
    assert text.startswith(
        "exclusive attention of 20 queries over 20 keys, causal, 4 heads over 2, head_dim 16, float32 on cpu: sdpa."
    )
    assert "Chosen on the CPU" in text
    assert "docs/performance.md" in text
    assert "projection in place on what it returns, by one loop in C++" in text


def test_says_why_there_is_no_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "_found", cpp._Outcome(library=None, why_not="no C++ compiler was found"))
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


@pytest.mark.parametrize("name", ["attention", "exclude"])
def test_a_backend_that_is_not_known_is_named(name: str) -> None:
    run = {
        "attention": lambda: exsel.attention(Q, Q, Q, backend="triton"),  # type: ignore[arg-type]
        "exclude": lambda: exsel.exclude(Q, K, backend="triton"),  # type: ignore[arg-type]
    }[name]
    with pytest.raises(ValueError, match="backend must be one of auto, reference, sdpa; got 'triton'"):
        run()


def test_forward_mode_runs_the_reference() -> None:
    with forward_ad.dual_level():
        text = explain(exclusive=True)
    assert ": reference.\nChosen inside forward-mode differentiation" in text
