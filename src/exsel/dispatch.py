"""Choose the backend, and explain the choice."""

from __future__ import annotations

from typing import Literal, get_args

from exsel.kernels.exclude import passes_in_words
from exsel.kernels.operators import is_forward_mode
from exsel.kernels.sdpa import Call, in_blocks, owns_stock_kernel

Backend = Literal["auto", "reference", "sdpa"]

#: What was measured of ``sdpa``, which ``auto`` chooses, by kind of device.
_EVIDENCE = {
    "cpu": "on the CPU: PyTorch's flash kernel and one C++ pass, measured in docs/performance.md",
    "cuda": "on a GPU: PyTorch's flash or cuDNN kernel and one Triton pass in place, which was measured on no GPU yet",
}


def choose_backend(backend: str) -> str:
    """The backend that runs; an explicit one is never replaced.

    Raises:
        ValueError: an unknown backend.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    if backend != "auto":
        return backend
    return "reference" if is_forward_mode() else "sdpa"


def explain(backend: str, call: Call) -> str:
    """Which backend would run a call and why, in sentences."""
    chosen = choose_backend(backend)
    if backend != "auto":
        why = "Asked for by name."
    elif chosen == "reference":
        why = "Chosen inside forward-mode differentiation: the stock kernels and ours have no such derivative."
    else:
        anywhere = "anywhere else: PyTorch's operators run on every device; nothing was measured"
        why = f"Chosen {_EVIDENCE.get(call.query.device.type, anywhere)}."
    return "\n".join([f"{_describe(call)}: {chosen}.", why, _how(chosen, call)])


def _describe(call: Call) -> str:
    heads, kv_heads = call.query.shape[-3], call.key.shape[-3]
    dtype = str(call.query.dtype).removeprefix("torch.")
    kind = "exclusive attention" if call.own_value is not None else "attention"
    mask = ", causal" if call.is_causal else ", masked" if call.attn_mask is not None else ""
    mask += "" if call.sliding_window is None else f", a window of {call.sliding_window}"
    mask += "" if call.sequence is None else ", packed"
    return (
        f"{kind} of {call.query.shape[-2]} queries over {call.key.shape[-2]} keys{mask}, {heads} heads over "
        f"{kv_heads}, head_dim {call.query.shape[-1]}, {dtype} on {call.query.device}"
    )


def _how(chosen: str, call: Call) -> str:
    if chosen == "reference":
        return "Plain PyTorch, the whole matrix of weights in memory."
    if not call.is_banded:
        where = ""
    elif in_blocks(call):
        where = "\nNo mask of all queries by all keys: a call a packed sequence, a window in blocks of queries."
    else:
        where = "\nWindow and packed sequences are a mask of all queries by all keys."
    if call.own_value is None:
        return f"PyTorch's scaled_dot_product_attention as it is.{where}"
    by = passes_in_words(call.query)
    if owns_stock_kernel(call):
        return f"The stock kernel, and the projection in place on what it returns, by {by}.{where}"
    return f"scaled_dot_product_attention, then the projection, by {by}.{where}"
