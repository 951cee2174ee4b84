"""The page that says where models run: its loop runs, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import exsel

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "elsewhere.md").read_text(encoding="utf-8")


def test_the_tests_that_the_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_pages_loop_trains() -> None:
    (loop,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "for step in" in block]
    names: dict[str, Any] = {}
    exec(loop, names)
    assert names["loss"] < 1.5  # of log 64 = 4.2 at the start
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    torch.testing.assert_close(
        names["attend"](q, k, v), exsel.attention(q, k, v, is_causal=True, exclusive=True), rtol=0, atol=1e-6
    )
