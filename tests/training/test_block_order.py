from __future__ import annotations

import pytest

from exsel.training.trainer import BlockOrder


@pytest.mark.parametrize(("blocks", "length"), [(7, 7), (7, 30), (7, 3), (1, 5)])
def test_every_block_comes_once_a_pass(blocks: int, length: int) -> None:
    order = list(BlockOrder(blocks, length=length, seed=0))
    assert len(order) == len(BlockOrder(blocks, length=length, seed=0)) == length
    for start in range(0, length, blocks):
        one_pass = order[start : start + blocks]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(blocks))


def test_passes_and_seeds_differ_and_repeat() -> None:
    order = list(BlockOrder(20, length=60, seed=1))
    assert order == list(BlockOrder(20, length=60, seed=1))
    assert order != list(BlockOrder(20, length=60, seed=2))
    assert order[:20] != order[20:40]


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    assert list(BlockOrder(20, length=60, seed=1))[:33] == list(BlockOrder(20, length=33, seed=1))
