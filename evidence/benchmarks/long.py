"""What long calls cost on an eager CPU: a sliding window, and packed sequences, forward.

    python -m evidence.benchmarks.long [--tokens 32768] [--window 1024] [--sequences 64] [--rounds N]

8 heads of 64 in float32. A window's floor is one stock call for each block of queries with the keys that they see; that
of packed sequences is the same call on them as a batch. The plain output is compared with the floor's before anything
is timed, and the memory is counted at a contender's first call. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import exsel
from evidence.benchmarks.cpu_rows import keep_rows
from exsel.bench.attention import EXCLUSIVE, check_output
from exsel.bench.measuring import Contender, CpuClock, Work, measure
from exsel.cli.display import activity

OUT = Path(__file__).parent / "results" / "long_cpu.json"
HEADS, HEAD_DIM, SEQUENCE = 8, 64, 512
BOTH = "exclusive+selective"


def window_work(tokens: int, window: int) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """By group and name; the floor first."""
    q, k, v = states(1, tokens)
    scales = temperatures(1, tokens)
    distance = torch.arange(window, 2 * window).unsqueeze(-1) - torch.arange(2 * window)
    band = torch.zeros(window, 2 * window).masked_fill((distance < 0) | (distance >= window), -torch.inf)

    def blocks() -> Tensor:
        parts = []
        for begin in range(0, tokens, window):
            first = max(0, begin - window)
            mask = band[:, window:] if begin == 0 else band
            keys, values = k[:, :, first : begin + window], v[:, :, first : begin + window]
            parts.append(F.scaled_dot_product_attention(q[:, :, begin : begin + window], keys, values, mask))
        return parts[-1]

    call: Callable[..., Tensor] = partial(exsel.attention, q, k, v, is_causal=True, sliding_window=window)
    check_output(Work(forward=lambda: call()[:, :, -window:]), blocks(), 1.0)
    return {
        ("baseline", "stock, a block each"): blocks,
        ("baseline", "exsel"): call,
        (EXCLUSIVE, "exsel"): partial(call, exclusive=True),
        (BOTH, "exsel"): partial(call, exclusive=True, **scales),
    }


def packed_work(sequences: int) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """By group and name; the floor first."""
    tokens = sequences * SEQUENCE
    row = states(1, tokens)
    batch = [x.unflatten(2, (sequences, SEQUENCE)).squeeze(0).transpose(0, 1) for x in row]
    scales = temperatures(1, tokens)
    starts = torch.arange(sequences + 1, dtype=torch.int32) * SEQUENCE
    q, k, v = batch
    floor: Callable[[], Tensor] = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    call: Callable[..., Tensor] = partial(exsel.attention, *row, is_causal=True, cu_seqlens=starts)
    check_output(Work(forward=lambda: call().unflatten(2, (sequences, -1)).squeeze(0).transpose(0, 1)), floor(), 1.0)
    in_batch = {name: x.unflatten(2, (sequences, -1)).squeeze(0).transpose(0, 1) for name, x in scales.items()}
    as_batch: Callable[..., Tensor] = partial(exsel.attention, *batch, is_causal=True, exclusive=True)
    return {
        ("baseline", "as a batch"): floor,
        ("baseline", "exsel"): call,
        (EXCLUSIVE, "as a batch"): as_batch,
        (EXCLUSIVE, "exsel"): partial(call, exclusive=True),
        (BOTH, "as a batch"): partial(as_batch, **in_batch),
        (BOTH, "exsel"): partial(call, exclusive=True, **scales),
    }


def states(batch: int, tokens: int) -> list[Tensor]:
    """Query, key and value ``[B, H, T, D]`` as projections write them."""
    return [torch.randn(batch, tokens, HEADS, HEAD_DIM).transpose(1, 2) for _ in range(3)]


def temperatures(batch: int, tokens: int) -> dict[str, Tensor]:
    """τ_q and τ_v ``[B, H, T]`` near 1."""
    return {name: 1 + torch.rand(batch, HEADS, tokens) / 10 for name in ("query_scale", "value_scale")}


def extra_bytes(call: Callable[[], Tensor]) -> int:
    """The most memory that a call takes beyond what was there before and what it returns."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    result = call()
    return max(0, resident("VmHWM") - before - result.untyped_storage().nbytes())


def resident(what: str) -> int:
    """Bytes by the kernel's count."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768, help="of the window's case (%(default)s)")
    parser.add_argument("--window", type=int, default=1024, help="(%(default)s)")
    parser.add_argument("--sequences", type=int, default=64, help=f"of {SEQUENCE} tokens, packed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    cases: list[tuple[str, int, int, Callable[[], dict[tuple[str, str], Callable[[], Tensor]]]]] = [
        ("window", arguments.tokens, 1, partial(window_work, arguments.tokens, arguments.window)),
        ("packed", SEQUENCE, arguments.sequences, partial(packed_work, arguments.sequences)),
    ]
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), activity() as say:
        for number, (subject, tokens, batch, make) in enumerate(cases):
            say(f"{subject}, {batch} × {tokens} (case {number + 1} of {len(cases)})")
            work = make()
            first = next(iter(work))
            extra = {key: extra_bytes(call) for key, call in work.items()}
            measured = measure(
                [
                    Contender(
                        name=name,
                        group=group,
                        floor=(group, first[1]) if (group, first[1]) in work else first,
                        prepare=partial(Work, forward=call),
                        details={"extra_bytes": extra[group, name]},
                    )
                    for (group, name), call in work.items()
                ],
                clock=CpuClock(),
                device=torch.device("cpu"),
                rounds=arguments.rounds,
                say=say,
            )
            described = {
                "subject": subject,
                "shape": f"{HEADS}x{HEADS}x{HEAD_DIM}",
                "num_heads": HEADS,
                "tokens": tokens,
                "batch": batch,
            }
            rows += [{**described, **row} for row in measured]
    keep_rows(arguments.out, "evidence.benchmarks.long", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
