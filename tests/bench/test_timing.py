from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from exsel.bench.measuring import CpuClock, Work, peak_bytes, saved_bytes


def work() -> Work:
    x = torch.ones(4, requires_grad=True)
    return Work(forward=lambda: x * x, inputs=(x,), gradient=torch.ones(4))


def test_passes_of_work_with_a_gradient() -> None:
    seconds = CpuClock().time(work())
    assert set(seconds) == {"forward", "backward", "both"}
    assert seconds["both"] == seconds["forward"] + seconds["backward"]
    assert seconds["forward"] > 0 < seconds["backward"]


def test_the_only_pass_without_a_gradient() -> None:
    def forward() -> torch.Tensor:
        time.sleep(0.01)
        return torch.zeros(1)

    seconds = CpuClock().time(Work(forward=forward, name="decode"))
    assert set(seconds) == {"decode"}
    assert seconds["decode"] >= 0.01


def test_short_work_is_repeated_and_long_work_is_not() -> None:
    clock = CpuClock(least=0.005)
    clock.calibrate(work())
    assert clock.repeats > 1
    clock.calibrate(Work(forward=lambda: time.sleep(0.01) or torch.zeros(1)))
    assert clock.repeats == 1


def test_bytes_that_stock_attention_keeps() -> None:
    """q, k, v, y and a float32 a token and head, each once, whatever views of them are kept."""
    q, k, v = (torch.randn(2, 64, 4, 16).transpose(1, 2).requires_grad_() for _ in range(3))
    kept = saved_bytes(
        Work(
            forward=lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            inputs=(q, k, v),
            gradient=torch.randn_like(q),
        )
    )
    one = 2 * 64 * 4 * 16 * 4
    assert kept is not None
    assert 4 * one + 2 * 64 * 4 * 4 <= kept <= 4 * one + 2 * 64 * 4 * 4 + 256  # and the state of its dropout


def test_what_is_not_known_is_not_a_number() -> None:
    assert peak_bytes(work(), torch.device("cpu")) is None
    assert saved_bytes(Work(forward=lambda: torch.zeros(1))) is None
