"""The fused attention against the float64 reference, forward and backward, within the error budget."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from budget import assert_within_budget
from exsel import reference
from exsel.kernels.triton.attention import attention_forward
from exsel.kernels.triton.attention_backward import attention_backward
from exsel.kernels.triton.tuning import SHARED_MEMORY, default_config

# No rule chooses this kernel, and the interpreter takes minutes for it.
pytestmark = pytest.mark.slow

EPS = 1e-12


def blocks(rows: int, columns: int) -> dict[str, int]:
    return {"BLOCK_M": rows, "BLOCK_N": columns, "num_warps": 4, "num_stages": 2}


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float32
    heads: tuple[int, int] = (2, 1)
    tokens: int = 70
    head_dim: int = 33
    is_causal: bool = True
    window: int | None = None
    packed: bool = False
    exclusive: str | None = "one"  # or None, "head", "token": where the strength comes from
    scales: str = ""  # of "query", "value"
    layout: str = "bhtd"
    keys: int | None = None  # None: as many as tokens
    scale: float | None = None  # None: D^-1/2
    batch_size: int = 1

    def __str__(self) -> str:
        (heads, kv_heads), keys = self.heads, self.keys or self.tokens
        parts = [
            f"{str(self.dtype)[6:]}-{self.layout}-{self.batch_size}x{heads}:{kv_heads}x{self.tokens}:{keys}x{self.head_dim}",
            "causal" if self.is_causal else "bidirectional",
            f"window{self.window}" if self.window else "",
            "packed" if self.packed else "",
            f"exclusive-{self.exclusive}" if self.exclusive else "plain",
            self.scales.replace(" ", "-"),
            f"scale{self.scale}" if self.scale is not None else "",
        ]
        return "-".join(part for part in parts if part)


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    strength: Tensor | None
    query_scale: Tensor | None
    value_scale: Tensor | None
    dz: Tensor
    cu_seqlens: Tensor | None
    case: Case

    @property
    def scale(self) -> float:
        return self.case.head_dim**-0.5 if self.case.scale is None else self.case.scale

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "exclusive": self.case.exclusive is not None,
            "strength": self.strength,
            "query_scale": self.query_scale,
            "value_scale": self.value_scale,
            "cu_seqlens": self.cu_seqlens,
            "is_causal": self.case.is_causal,
            "window": self.case.window,
            "scale": self.scale,
            "eps": EPS,
        }


def sequences(tokens: int, device: torch.device) -> Tensor:
    """An empty sequence, one of a single token, and boundaries inside of blocks."""
    ends = sorted({min(end, tokens) for end in (0, 1, 1 + tokens // 3, 1 + tokens // 2)})
    return torch.tensor([0, *ends, tokens], dtype=torch.int32, device=device)


def per_token(*shape: int, device: torch.device) -> Tensor:
    """Scales of the usual size, and some of 0 and below."""
    scales = 2 * torch.rand(shape, device=device)
    scales[..., ::5] = 0.0
    scales[..., 3::7] = -0.5
    return scales


def make_inputs(case: Case, device: torch.device) -> Inputs:
    batch_size, (heads, kv_heads), tokens, head_dim = case.batch_size, case.heads, case.tokens, case.head_dim
    keys = case.keys or tokens

    def rows(heads: int, tokens: int) -> Tensor:
        if case.layout == "bthd":
            return torch.randn(batch_size, tokens, heads, head_dim, device=device).to(case.dtype).transpose(1, 2)
        return torch.randn(batch_size, heads, tokens, head_dim, device=device).to(case.dtype)

    if case.layout == "fused":
        fused = torch.randn(batch_size, tokens, heads + 2 * kv_heads, head_dim, device=device).to(case.dtype)
        query, key, value = fused.transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    else:
        query, key, value = rows(heads, tokens), rows(kv_heads, keys), rows(kv_heads, keys)
    strength = None
    if case.exclusive == "head":
        strength = torch.rand(heads, device=device)[None, :, None].expand(batch_size, heads, tokens)
    elif case.exclusive == "token":
        strength = torch.rand(batch_size, tokens, heads, device=device).mT * 2 - 0.5
    return Inputs(
        query,
        key,
        value,
        strength,
        per_token(batch_size, tokens, heads, device=device).mT if "query" in case.scales else None,
        per_token(batch_size, kv_heads, keys, device=device) if "value" in case.scales else None,
        # Of this size dz·v and dz·z, whose differences the gradients are, are as large as 1: see the budget.
        rows(heads, tokens) * head_dim**-0.5,
        sequences(tokens, device) if case.packed else None,
        case,
    )


def visible(inputs: Inputs) -> Tensor:
    """[T, S]: which keys a query may see."""
    case, device = inputs.case, inputs.query.device
    row = torch.arange(case.tokens, device=device)[:, None]
    column = torch.arange(inputs.key.shape[2], device=device)[None, :]
    mask = torch.ones(case.tokens, inputs.key.shape[2], dtype=torch.bool, device=device)
    if case.is_causal:
        mask &= column <= row
    if case.window is not None:
        mask &= (row - column).abs() < case.window
    if inputs.cu_seqlens is not None:
        bounds = inputs.cu_seqlens.tolist()
        own = torch.zeros_like(mask)
        for begin, end in itertools.pairwise(bounds):
            own[begin:end, begin:end] = True
        mask &= own
    return mask


def plain(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of the reference in a dtype; what is given per token stays in float32 or float64."""
    token_dtype = reference.accumulation_dtype(dtype)
    leaves = [
        x.detach().to(dtype).requires_grad_() if index < 3 else x.detach().to(token_dtype).requires_grad_()
        for index, x in enumerate(
            (inputs.query, inputs.key, inputs.value, inputs.strength, inputs.query_scale, inputs.value_scale)
        )
        if x is not None
    ]
    query, key, value, *rest = leaves
    given = iter(rest)
    strength = next(given) if inputs.strength is not None else None
    query_scale = next(given) if inputs.query_scale is not None else None
    value_scale = next(given) if inputs.value_scale is not None else None
    y = reference.attention(query, key, value, visible(inputs), 0.0, False, inputs.scale, query_scale, value_scale)
    z = y if inputs.case.exclusive is None else reference.exclude(y, value, strength, EPS)
    return [z.detach(), *torch.autograd.grad(z, leaves, inputs.dz.to(dtype))]


def fused(inputs: Inputs, forward: tuple[int, int] = (32, 32), backward: tuple[int, int] = (32, 32)) -> list[Tensor]:
    z, logsumexp, along = attention_forward(
        inputs.query, inputs.key, inputs.value, **inputs.keywords, config=blocks(*forward)
    )
    assert z.transpose(1, 2).is_contiguous()
    assert (along is None) == (inputs.case.exclusive is None)
    gradients = attention_backward(
        inputs.dz, inputs.query, inputs.key, inputs.value, z, logsumexp, along, **inputs.keywords,
        prologue_config={"BLOCK_T": 16, "num_warps": 4}, key_value_config=blocks(*backward),
        query_config=blocks(*forward),
    )  # fmt: skip
    return [z, *(x for x in gradients if x is not None)]


def check(case: Case, device: torch.device, **sizes: tuple[int, int]) -> None:
    inputs = make_inputs(case, device)
    # The gradients per token are float32, sums of products of numbers in the inputs' dtype: these set their precision.
    if case.tokens > 100 and not sizes:
        sizes = {"forward": (64, 32), "backward": (64, 64)}  # the interpreter's time is by the block
    got, exact, eager = fused(inputs, **sizes), plain(inputs, torch.float64), plain(inputs, case.dtype)
    assert_within_budget([x.to(case.dtype) for x in got], exact, [x.to(case.dtype) for x in eager])


def pairwise() -> list[Case]:
    """Every two values of two different fields together in some case, in few cases."""
    factors: dict[str, list[Any]] = {
        "dtype": [torch.float32, torch.bfloat16, torch.float16],
        "heads": [(1, 1), (3, 3), (6, 2), (4, 1)],
        "tokens": [1, 2, 7, 33, 130],
        "head_dim": [8, 33, 64, 80, 128],
        "seen": [(True, None, False), (False, None, False), (True, 1, False), (True, 5, False), (False, 5, False),
                 (False, 500, False), (True, None, True), (False, None, True), (True, 5, True)],
        "exclusive": [None, "one", "head", "token"],
        "scales": ["", "query", "value", "query value"],
        "layout": ["bhtd", "bthd", "fused"],
    }  # fmt: skip
    lot = random.Random(0)
    missing = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(range(len(factors)), 2)
        for x in range(len(list(factors.values())[a]))
        for y in range(len(list(factors.values())[b]))
    }
    cases = []
    while missing:
        seed = sorted(map(sorted, missing))[0]
        best: tuple[int, list[int]] = (-1, [])
        for _ in range(60):
            row = [lot.randrange(len(values)) for values in factors.values()]
            for index, value in seed:
                row[index] = value
            covered = sum(frozenset(pair) in missing for pair in itertools.combinations(enumerate(row), 2))
            best = max(best, (covered, row), key=lambda found: found[0])
        missing -= {frozenset(pair) for pair in itertools.combinations(enumerate(best[1]), 2)}
        chosen = {name: values[index] for (name, values), index in zip(factors.items(), best[1], strict=True)}
        is_causal, window, packed = chosen.pop("seen")
        cases.append(Case(**chosen, is_causal=is_causal, window=window, packed=packed))
    return cases


@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_matches_the_reference(case: Case, device: torch.device) -> None:
    check(case, device)


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=33, keys=70, exclusive=None, is_causal=False, scales="query value"),
        Case(tokens=70, keys=33, exclusive=None, is_causal=False, dtype=torch.bfloat16),
        Case(tokens=33, keys=70, exclusive=None, dtype=torch.float16),
        Case(tokens=70, keys=33, exclusive=None, scales="query value"),
        Case(tokens=70, keys=33, exclusive=None, window=20),
        Case(tokens=70, keys=33, exclusive=None, is_causal=False, window=9),
        Case(tokens=33, keys=1, exclusive=None, is_causal=False),
    ],
    ids=str,
)
def test_as_many_keys_as_you_like(case: Case, device: torch.device) -> None:
    check(case, device)


@pytest.mark.parametrize("is_causal", [True, False])
def test_several_batches_and_blocks_of_other_sizes(is_causal: bool, device: torch.device) -> None:
    case = Case(heads=(4, 2), batch_size=2, is_causal=is_causal, exclusive="token", scales="query value")
    check(case, device, forward=(16, 64), backward=(64, 32))


def test_head_dim_256(device: torch.device) -> None:
    check(Case(torch.bfloat16, tokens=33, head_dim=256, exclusive="token", scales="query value"), device)
    check(Case(torch.float32, tokens=33, head_dim=192), device)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_any_scale(scale: float, device: torch.device) -> None:
    check(Case(scale=scale, tokens=33), device)
    check(Case(scale=scale, tokens=33, scales="query"), device)


def test_the_configuration_is_chosen(device: torch.device) -> None:
    inputs = make_inputs(Case(tokens=130, exclusive="head", scales="query value"), device)
    z, logsumexp, along = attention_forward(inputs.query, inputs.key, inputs.value, **inputs.keywords)
    gradients = attention_backward(
        inputs.dz, inputs.query, inputs.key, inputs.value, z, logsumexp, along, **inputs.keywords
    )
    assert_within_budget([z, *gradients], plain(inputs, torch.float64), plain(inputs, torch.float32))


@pytest.mark.parametrize("kernel", ["attention_forward", "attention_backward_key_value", "attention_backward_query"])
def test_every_architecture_has_a_configuration(kernel: str) -> None:
    for target, dtype, head_dim in itertools.product(SHARED_MEMORY, [torch.float32, torch.bfloat16], [8, 80, 128, 256]):
        assert default_config(kernel, head_dim, dtype, target).keys() == blocks(0, 0).keys()


def test_logsumexp_and_along(device: torch.device) -> None:
    inputs = make_inputs(Case(tokens=70, exclusive="token", scales="query value", packed=True), device)
    _, logsumexp, along = attention_forward(
        inputs.query, inputs.key, inputs.value, **inputs.keywords, config=blocks(32, 32)
    )
    assert along is not None
    exact, eager = [], []
    for dtype, found in ((torch.float64, exact), (torch.float32, eager)):
        q, k, v = (x.to(dtype) for x in (inputs.query, inputs.key, inputs.value))
        assert inputs.query_scale is not None
        scores = (q * inputs.query_scale.to(dtype).unsqueeze(-1)) @ k.mT * inputs.scale
        y = reference.attention(
            q, k, v, visible(inputs), 0.0, False, inputs.scale, inputs.query_scale, inputs.value_scale
        )
        found.append(scores.masked_fill(~visible(inputs), -torch.inf).logsumexp(-1))
        found.append((y * torch.nn.functional.normalize(v, dim=-1)).sum(-1))
    assert_within_budget([logsumexp, along], exact, eager)


def test_rows_that_see_nothing(device: torch.device) -> None:
    """Tokens before the first and past the last sequence, among others in their block."""
    inputs = make_inputs(Case(tokens=70, heads=(2, 2), exclusive="token", scales="query value", packed=True), device)
    inputs.cu_seqlens = torch.tensor([5, 40, 50], dtype=torch.int32, device=device)
    outside = torch.ones(70, dtype=torch.bool, device=device)
    outside[5:50] = False
    got, exact = fused(inputs), plain(inputs, torch.float64)
    for x in got:
        per_row = x if x.dim() == 3 else x.abs().sum(-1)
        assert (per_row[:, :, outside] == 0).all()
    assert_within_budget(got, exact, plain(inputs, torch.float32))
    _, logsumexp, _ = attention_forward(
        inputs.query, inputs.key, inputs.value, **inputs.keywords, config=blocks(32, 32)
    )
    assert (logsumexp[:, :, outside] == -torch.inf).all()
    assert logsumexp[:, :, ~outside].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e36, 1e18, 1e-18, 1e-36])
def test_values_whose_squares_are_not_representable(size: float, dtype: torch.dtype, device: torch.device) -> None:
    inputs = make_inputs(Case(dtype, tokens=33, head_dim=64), device)
    inputs.value = (inputs.value.double() * size).to(dtype)
    z, _, along = attention_forward(inputs.query, inputs.key, inputs.value, **inputs.keywords, config=blocks(32, 32))
    assert along is not None
    assert along.isfinite().all()

    def scaled(dtype: torch.dtype) -> Tensor:
        q, k, v = (x.to(dtype) for x in (inputs.query, inputs.key, inputs.value))
        y = reference.attention(q, k, v, visible(inputs), 0.0, False, inputs.scale, None, None)
        return (reference.exclude(y, v, None, EPS).double() / size).to(dtype)

    assert_within_budget([(z.double() / size).to(dtype)], [scaled(torch.float64)], [scaled(dtype)])


def test_zero_values_leave_y(device: torch.device) -> None:
    inputs = make_inputs(Case(tokens=33), device)
    inputs.value = inputs.value.clone()
    inputs.value[:, :, 5:9] = 0
    got = fused(inputs)
    assert all(x.isfinite().all() for x in got)
    assert_within_budget(got, plain(inputs, torch.float64), plain(inputs, torch.float32))
    unprojected, _, _ = attention_forward(
        inputs.query, inputs.key, inputs.value, **{**inputs.keywords, "exclusive": False}, config=blocks(32, 32)
    )
    assert torch.equal(got[0][:, :, 5:9], unprojected[:, :, 5:9])


def test_the_gradient_may_be_expanded(device: torch.device) -> None:
    for exclusive in (None, "one"):
        inputs = make_inputs(Case(tokens=33, exclusive=exclusive), device)
        inputs.dz = torch.ones((), device=device).expand_as(inputs.query)
        assert_within_budget(fused(inputs), plain(inputs, torch.float64), plain(inputs, torch.float32))


def test_same_bits_on_every_run(device: torch.device) -> None:
    case = Case(torch.bfloat16, heads=(2, 1), exclusive="token", scales="query value", packed=True)
    inputs = make_inputs(case, device)
    for first, second in zip(fused(inputs), fused(inputs), strict=True):
        assert torch.equal(first, second)


def test_gradients_lie_in_memory_as_their_inputs_do(device: torch.device) -> None:
    inputs = make_inputs(replace(Case(tokens=7), layout="bthd"), device)
    _, *gradients = fused(inputs)
    for x, gradient in zip((inputs.query, inputs.key, inputs.value), gradients, strict=True):
        assert gradient.stride() == x.stride()
