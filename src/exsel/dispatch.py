"""Which backend runs, and why: one table, and its explanation in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from exsel.kernels import cpp
from exsel.kernels.call import DECODE_TOKENS, Call
from exsel.kernels.exclude import HAS_TRITON, runs_triton
from exsel.kernels.registration import is_forward_mode
from exsel.kernels.sdpa import owns_stock_kernel

Backend = Literal["auto", "reference", "sdpa", "triton"]

#: The widest head of which one program keeps its tiles on chip.
LARGEST_HEAD_DIM = 256


@dataclass(frozen=True)
class Rule:
    """A row of the table: where it applies, which backend then runs, and what was measured."""

    where: str
    applies: Callable[[Call], bool]
    backend: Literal["reference", "sdpa", "triton"]
    evidence: str


#: The first rule that applies decides.
RULES = (
    Rule(
        "inside forward-mode differentiation",
        lambda call: is_forward_mode(),
        "reference",
        "neither the stock kernels nor ours have such a derivative",
    ),
    Rule(
        "on the CPU",
        lambda call: call.query.device.type == "cpu",
        "sdpa",
        "PyTorch's flash kernel and one C++ pass: docs/performance.md. Triton has no CPU kernels",
    ),
    Rule(
        "on a GPU",
        lambda call: call.query.is_cuda,
        "sdpa",
        "PyTorch's flash or cuDNN kernel and one Triton pass in place. Our fused kernel has not been measured against "
        "it on any GPU, so that it runs only where backend='triton' asks for it",
    ),
    Rule(
        "anywhere else",
        lambda call: True,
        "sdpa",
        "PyTorch's operators run on every device; nothing was measured",
    ),
)


def triton_refusal(call: Call) -> str | None:
    """Why the Triton kernels cannot run a call, with the remedy; None where they can."""
    if (refusal := triton_device_refusal(call.query)) is not None:
        return refusal
    if call.query.shape[-1] != call.value.shape[-1]:
        return "its kernels want values as wide as queries: use backend='sdpa'"
    if call.query.shape[-1] > LARGEST_HEAD_DIM:
        return f"its kernels take a head_dim of at most {LARGEST_HEAD_DIM}, got {call.query.shape[-1]}: use 'sdpa'"
    if call.dropout_p > 0:
        return "its kernels have no dropout: pass dropout_p=0 or use backend='sdpa'"
    if call.attn_mask is not None and not call.is_decode:
        return (
            "its training kernel takes no attn_mask: say it with is_causal, sliding_window and cu_seqlens, or use "
            f"backend='sdpa' (up to {DECODE_TOKENS} queries without a gradient take one)"
        )
    return None


def triton_device_refusal(x: Tensor) -> str | None:
    """Why no Triton kernel can run on a tensor's device or dtype; None where one can."""
    if not HAS_TRITON:
        return "Triton is not installed: pip install triton"
    if x.dtype == torch.float64:
        return "its kernels have no float64: use backend='reference' or 'sdpa'"
    if x.device.type == "cpu" and not _interprets():
        return "its kernels need a GPU, and the tensors are on the CPU: use backend='sdpa'"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _interprets() -> bool:
    """Whether this process runs Triton's kernels in its interpreter (TRITON_INTERPRET=1)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def choose_backend(backend: str, call: Call) -> str:
    """The backend that runs a call; an explicit one is never replaced.

    Raises:
        ValueError: an unknown backend, or an explicit one that cannot run the call.
    """
    return _choose(backend, lambda: _first_rule(call).backend, lambda: triton_refusal(call))


def choose_pass(backend: str, x: Tensor) -> str:
    """As :func:`choose_backend` for the projection alone."""
    return _choose(backend, lambda: "reference" if is_forward_mode() else "sdpa", lambda: triton_device_refusal(x))


def choose_temperature(backend: str, features: Tensor) -> str:
    """As :func:`choose_backend` for the temperatures, whose chain of operators is the reference everywhere."""
    return _choose(backend, lambda: "reference", lambda: triton_device_refusal(features))


def _choose(backend: str, automatic: Callable[[], str], triton_refuses: Callable[[], str | None]) -> str:
    if backend == "auto":
        return automatic()
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    if backend == "triton" and (refusal := triton_refuses()) is not None:
        raise ValueError(f"backend='triton' cannot run this: {refusal}")
    return backend


def explain(backend: str, call: Call) -> str:
    """Which backend would run a call and why, in sentences."""
    chosen = choose_backend(backend, call)
    lines = [f"{_describe(call)}: {chosen}."]
    if backend == "auto":
        rule = _first_rule(call)
        lines.append(f"Chosen {rule.where}: {rule.evidence}.")
    else:
        lines.append("Asked for by name.")
    lines.append(_how(chosen, call))
    if chosen != "triton" and (refusal := triton_refusal(call)) is not None:
        lines.append(f"triton cannot run it: {refusal}.")
    return "\n".join(lines)


def _first_rule(call: Call) -> Rule:
    return next(rule for rule in RULES if rule.applies(call))


def _describe(call: Call) -> str:
    heads, kv_heads = call.query.shape[-3], call.key.shape[-3]
    dtype = str(call.query.dtype).removeprefix("torch.")
    kind = "exclusive attention" if call.own_value is not None else "attention"
    mask = ", causal" if call.is_causal else ", masked" if call.attn_mask is not None else ""
    return (
        f"{kind} of {call.query.shape[-2]} queries over {call.key.shape[-2]} keys{mask}, {heads} heads over "
        f"{kv_heads}, head_dim {call.query.shape[-1]}, {dtype} on {call.query.device}"
    )


def _how(chosen: str, call: Call) -> str:
    if chosen == "reference":
        return "Plain PyTorch, the whole matrix of weights in memory."
    if chosen == "triton":
        if call.is_decode:
            return "The split decode kernel, and the projection where its parts are put together."
        return "The fused kernel, with the projection in its epilogue and the scales in its scores."
    if call.own_value is None:
        return "PyTorch's scaled_dot_product_attention as it is."
    if owns_stock_kernel(call.query, call.value, call.attn_mask, call.dropout_p):
        return f"The stock kernel, and the projection in place on what it returns, by {_pass_language(call.query)}."
    return f"scaled_dot_product_attention, then the projection, by {_pass_language(call.query)}."


def _pass_language(x: Tensor) -> str:
    if x.device.type == "cpu":
        return cpp.in_words()
    return "one Triton kernel" if runs_triton(x, "sdpa") else "several PyTorch operators"
