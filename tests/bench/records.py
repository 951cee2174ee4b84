"""A ``bench.json`` that nobody measured, for what reads one."""

from __future__ import annotations

from typing import Any


def row(contender: str, group: str, ratio: float | None, **values: Any) -> dict[str, Any]:
    """A row of attention; ``ratio`` None: refused."""
    summary = None
    if ratio is not None:
        summary = {"ms_median": 10 * ratio, "ratio_median": ratio, "ratio_quartiles": [ratio - 0.01, ratio + 0.02]}
    return {
        "subject": "attention",
        "shape": "1.4b",
        "num_heads": 24,
        "num_kv_heads": 24,
        "head_dim": 128,
        "tokens": 2048,
        "batch": 2,
        "group": group,
        "contender": contender,
        "floor": "stock",
        "rounds": 5,
        "passes": {} if summary is None else dict.fromkeys(("forward", "backward", "both"), summary),
        "saved_bytes": None if ratio is None else int(1000 * 2 * 2048 * 24 * ratio),
        "peak_bytes": None,
        "refused": "there is no compiler" if ratio is None else None,
        **values,
    }


def record(device: str = "cpu") -> dict[str, Any]:
    """Two lengths of attention."""
    rows = []
    for tokens, ours in ((2048, 1.03), (4096, 1.01)):
        rows += [
            row("stock", "baseline", 1.0, tokens=tokens),
            row("eager normalize", "exclusive", 2.0, tokens=tokens),
            row("compiled normalize", "exclusive", 1.08, tokens=tokens),
            row("exsel sdpa", "exclusive", ours, tokens=tokens),
            row("compiled dot", "exclusive", None, tokens=tokens),
            row("exsel sdpa", "exclusive+selective", 1.06, tokens=tokens),
        ]
    return {
        "format": 1,
        "command": "exsel bench",
        "device": device,
        "dtype": "float32",
        "partial": False,
        "machine": {"cores": 2, "processor": "A Processor", "device": "cpu", "torch": "2.13.0"},
        "git_revision": "0123456789abcdef",
        "rows": rows,
    }
