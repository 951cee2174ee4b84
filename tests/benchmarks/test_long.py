"""evidence/benchmarks/long.py: the contenders compute what their floors do, and memory is counted."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from evidence.benchmarks import long


def test_contenders_are_compared_with_their_floors() -> None:
    window, packed = long.window_work(64, 16), long.packed_work(2)
    for work, plain in ((window, "stock, a block each"), (packed, "as a batch")):
        assert [name for group, name in work if group == "baseline"] == [plain, "exsel"]
        assert all(torch.isfinite(call()).all() for call in work.values())
    whole = packed["exclusive+selective", "exsel"]().unflatten(2, (2, -1)).squeeze(0).transpose(0, 1)
    torch.testing.assert_close(whole, packed["exclusive+selective", "as a batch"]())


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
def test_memory_beyond_the_result_is_counted() -> None:
    x = torch.randn(1, 1, 2**22)
    assert long.extra_bytes(lambda: x * 2) < 2**21
    assert long.extra_bytes(lambda: F.relu(x * 2 + 1)) >= 2**24 - 2**21
