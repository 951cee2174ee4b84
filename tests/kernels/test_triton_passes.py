"""The projection kernels against the float64 reference, forward and backward, within the error budget."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from budget import assert_within_budget
from exsel import reference
from exsel.kernels import triton_passes
from exsel.kernels.triton_passes import project, project_backward

EPS = 1e-12


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float32
    heads: tuple[int, int] = (6, 2)
    tokens: int = 33
    head_dim: int = 64
    batch_size: int = 2
    layout: str = "bhtd"
    strength: str | None = None
    from_z: bool = False

    def __str__(self) -> str:
        heads, kv_heads = self.heads
        name = f"{str(self.dtype)[6:]}-{self.layout}-{self.batch_size}x{heads}:{kv_heads}x{self.tokens}x{self.head_dim}"
        name += f"-strength by {self.strength}" if self.strength else ""
        return name + ("-from z" if self.from_z else "")

    def empty(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """y [B, H, T, D] and v [B, Hkv, T, D] in this layout, and the memory that they are views of."""
        batch_size, (heads, kv_heads), tokens, head_dim = self.batch_size, self.heads, self.tokens, self.head_dim
        if self.layout == "bhtd":
            memory = torch.empty(heads + kv_heads, batch_size, tokens, head_dim, dtype=self.dtype, device=device)
            return (memory[:heads].view(batch_size, heads, tokens, head_dim),
                    memory[heads:].view(batch_size, kv_heads, tokens, head_dim), memory)  # fmt: skip
        if self.layout == "bthd":
            memory = torch.empty(heads + kv_heads, batch_size, tokens, head_dim, dtype=self.dtype, device=device)
            return (memory[:heads].view(batch_size, tokens, heads, head_dim).transpose(1, 2),
                    memory[heads:].view(batch_size, tokens, kv_heads, head_dim).transpose(1, 2), memory)  # fmt: skip
        assert self.layout == "fused"
        memory = torch.empty(batch_size, tokens, heads + 2 * kv_heads, head_dim, dtype=self.dtype, device=device)
        return memory[:, :, :heads].transpose(1, 2), memory[:, :, heads + kv_heads :].transpose(1, 2), memory

    def per_token(self, device: torch.device) -> Tensor | None:
        """Strength [B, H, T]."""
        shape = (self.batch_size, self.heads[0], self.tokens)
        if self.strength == "head":
            return torch.rand(self.heads[0], device=device)[None, :, None].expand(shape)
        return torch.rand(shape[0], shape[2], shape[1], device=device).mT * 2 - 0.5 if self.strength else None


def sampled() -> list[Case]:
    """Every dtype, heads and length with each other, the rest by lot; and the two largest head dimensions once."""
    lot = random.Random(1)
    cases = []
    for dtype, heads, tokens in itertools.product(
        [torch.float32, torch.bfloat16, torch.float16], [(1, 1), (3, 3), (6, 2), (4, 1)], [1, 2, 7, 33, 130]
    ):
        cases.append(
            Case(
                dtype,
                heads,
                tokens,
                head_dim=lot.choice([8, 33, 64, 80, 96, 128]),
                batch_size=lot.choice([1, 2]),
                layout=lot.choice(["bhtd", "bthd", "fused"]),
                strength=lot.choice([None, "head", "token"]),
                from_z=lot.random() < 0.5,
            )
        )
    return [
        *cases,
        Case(torch.bfloat16, tokens=7, head_dim=192, layout="bthd", strength="token"),
        Case(torch.bfloat16, tokens=7, head_dim=256, layout="fused", from_z=True),
        Case(tokens=5, head_dim=3, strength="head"),
        Case(tokens=3, head_dim=520, strength="token"),
    ]


def expected(
    dout: Tensor, inputs: tuple[Tensor | None, ...], dtype: torch.dtype | None, eps: float = EPS
) -> list[Tensor]:
    """The reference's output and its gradients by each of ``inputs`` that is not None, in their dtype or another."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    y, v, strength = leaves
    assert y is not None
    assert v is not None
    out = reference.exclude(y, v, strength, eps)
    return [out.detach(), *torch.autograd.grad(out, [x for x in leaves if x is not None], dout.to(out.dtype))]


def ours(case: Case, dout: Tensor, inputs: tuple[Tensor, Tensor, Tensor | None], eps: float = EPS) -> list[Tensor]:
    """As :func:`expected`, by the kernels; outputs begin as NaN and lie in memory as the inputs do."""
    y, v, strength = inputs
    out, _, out_memory = case.empty(y.device)
    along = torch.empty(y.shape[:3], device=y.device)
    project(y, v, strength, eps, out, along)
    dy, dv, gradient_memory = case.empty(y.device)
    dstrength = None if strength is None else torch.empty_like(along)
    if case.from_z:
        project_backward(dout, out, v, strength, eps, along, dy, dv, dstrength)
    else:
        project_backward(dout, y, v, strength, eps, None, dy, dv, dstrength)
    # Nothing is written beside the outputs.
    assert out_memory.isnan().sum() == out_memory.numel() - out.numel()
    assert gradient_memory.isnan().sum() == gradient_memory.numel() - dy.numel() - dv.numel()
    return [x for x in (out, dy, dv, dstrength) if x is not None]


def draw(case: Case, device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
    """dout, and y, v and strength."""
    dout, (y, v, _) = case.empty(device)[0], case.empty(device)
    for x in (dout, y, v):
        x.normal_()
    return dout, (y, v, case.per_token(device))


class TestAgainstTheReference:
    @pytest.mark.parametrize(
        "case",
        [pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (case.tokens > 100)) for case in sampled()],
    )
    def test_outputs_and_gradients(self, case: Case, device: torch.device) -> None:
        # Several draws, judged together, where a draw has few numbers: eager's error on a few is a matter of luck.
        sides: tuple[list[list[Tensor]], ...] = ([], [], [])
        for _ in range(math.ceil(32 / (case.batch_size * case.heads[0] * case.tokens))):
            dout, inputs = draw(case, device)
            results = ours(case, dout, inputs), expected(dout, inputs, torch.float64), expected(dout, inputs, None)
            for side, result in zip(sides, results, strict=True):
                side.append(result)
        got, exact, eager = ([torch.stack(tensors) for tensors in zip(*side, strict=True)] for side in sides)
        assert_within_budget(got[:1], exact[:1], eager[:1])
        assert_within_budget(got[1:], exact[1:], eager[1:])

    @pytest.mark.parametrize("from_z", [False, True])
    @pytest.mark.parametrize("strength", [None, "token"])
    def test_below_eps(self, from_z: bool, strength: str | None, device: torch.device) -> None:
        """Below eps the norm is a constant: another formula, for about half of these rows."""
        case = Case(tokens=40, head_dim=16, strength=strength, from_z=from_z)
        dout, inputs = draw(case, device)
        assert 0.2 < (inputs[1].norm(dim=-1) < 4.0).float().mean() < 0.8
        got = ours(case, dout, inputs, eps=4.0)
        exact, eager = expected(dout, inputs, torch.float64, 4.0), expected(dout, inputs, None, 4.0)
        assert_within_budget(got, exact, eager)

    def test_along(self, device: torch.device) -> None:
        case = Case(layout="bthd")
        _, (y, v, _) = draw(case, device)
        along = torch.empty(y.shape[:3], device=device)
        project(y, v, None, EPS, torch.empty_like(y), along)
        unit = F.normalize(v.double(), dim=-1).repeat_interleave(3, dim=1)
        torch.testing.assert_close(along.double(), (y.double() * unit).sum(-1), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("config", [{"BLOCK_T": 1, "num_warps": 1}, {"BLOCK_T": 16, "num_warps": 2}])
    def test_any_configuration(
        self, config: dict[str, int], device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = Case(heads=(2, 1), tokens=19, head_dim=33, strength="token")
        dout, inputs = draw(case, device)
        default = ours(case, dout, inputs)
        monkeypatch.setattr(triton_passes, "launch_config", lambda *_: config)
        torch.testing.assert_close(ours(case, dout, inputs), default)


class TestInPlace:
    @pytest.mark.parametrize("layout", ["bhtd", "bthd", "fused"])
    def test_forward_and_backward(self, layout: str, device: torch.device) -> None:
        case = Case(torch.bfloat16, layout=layout, tokens=70, strength="head")
        dout, (y, v, strength) = draw(case, device)
        apart, dy, dv = torch.empty_like(y), torch.empty_like(y), torch.empty_like(v)
        project(y, v, strength, EPS, apart)
        project_backward(dout, y, v, strength, EPS, None, dy, dv)
        in_y = y.clone()
        project(in_y, v, strength, EPS, in_y)
        assert torch.equal(in_y, apart)
        project_backward(dout, y, v, strength, EPS, None, dout, v)
        assert torch.equal(dout, dy)
        assert torch.equal(v, dv)


class TestOrthogonality:
    @pytest.mark.parametrize("across", [1.0, 2e-3])
    @pytest.mark.parametrize("along", [1.0, 1e4])
    @pytest.mark.parametrize("head_dim", [8, 64])
    def test_however_little_is_left(self, head_dim: int, across: float, along: float, device: torch.device) -> None:
        """z of ``across`` · ‖v‖ where y is ``along`` · ‖v‖ along v: what rounding leaves of y must not show in z."""
        v = torch.randn(1, 2, 130, head_dim, device=device)
        other = torch.linalg.vector_norm(v, dim=-1, keepdim=True) * F.normalize(
            reference.exclude(torch.randn_like(v).double(), v.double(), None, EPS), dim=-1
        )
        z = torch.empty_like(v)
        project((along * v.double() + across * other).float(), v, None, EPS, z)
        counted = z.double().norm(dim=-1) > 1e-3 * v.double().norm(dim=-1)
        assert counted.any()
        cosine = (z.double() * v).sum(-1).abs() / (z.double().norm(dim=-1) * v.double().norm(dim=-1))
        assert (cosine[counted] < 1e-6).all()


class TestRange:
    """‖v‖ from nothing to the largest float: right where the answer is representable, finite always."""

    SIZES = (
        *((torch.float32, size) for size in (0.0, 1e-45, 1e-40, 1e-30, 1e-12, 1e-10, 1e20, 3.4028234e38)),
        *((torch.bfloat16, size) for size in (0.0, 1e-40, 1e-30, 1e-10, 3.3895e38)),
        *((torch.float16, size) for size in (0.0, 6e-8, 1e-5, 300.0, 65504.0)),
    )

    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # the interpreter, of float16 gradients
    @pytest.mark.parametrize(("dtype", "size"), SIZES, ids=str)
    @pytest.mark.parametrize("strength", [None, "token"])
    def test_every_size(self, dtype: torch.dtype, size: float, strength: str | None, device: torch.device) -> None:
        case = Case(dtype, tokens=9, head_dim=16, strength=strength)
        if device.type == "cpu" and dtype == torch.bfloat16 and 0 < size < torch.finfo(dtype).tiny:
            pytest.skip("Triton's interpreter reads bfloat16 numbers below the smallest normal one as other numbers")
        dout, (y, v, alpha) = draw(case, device)
        v.copy_((torch.rand(v.shape, dtype=torch.float64, device=device) * 2 - 1) * size)
        got = ours(case, dout, (y, v, alpha))
        exact = expected(dout, (y, v, alpha), torch.float64)
        rounding = torch.finfo(dtype).eps
        for ours_, true in zip(got[:2], exact[:2], strict=True):
            torch.testing.assert_close(ours_.double(), true, rtol=2 * rounding, atol=max(1e-5, rounding))
        for ours_, true in zip(got[2:], exact[2:], strict=True):
            largest = torch.finfo(ours_.dtype).max
            assert ours_.isfinite().all() or true.abs().max() > largest
            true = true.clamp(-largest, largest)
            # A gradient of less than the smallest normal float is not asked for its digits.
            atol = 4 * rounding * true.abs().max().item() + torch.finfo(ours_.dtype).tiny
            torch.testing.assert_close(ours_.double().clamp(-largest, largest), true, rtol=4 * rounding, atol=atol)

    def test_one_dimension(self, device: torch.device) -> None:
        """v̂ is 1 or −1: z and its derivatives are 0."""
        case = Case(head_dim=1)
        dout, (y, v, _) = draw(case, device)
        out, dy, dv = ours(case, dout, (y, v, None))
        assert ((out / y).abs() < 1e-6).all()
        assert ((dy / dout).abs() < 1e-6).all()
        assert ((dv * v).abs() < 1e-6 * (y * dout).abs().max()).all()

    def test_zero_value(self, device: torch.device) -> None:
        case = Case(torch.bfloat16)
        dout, (y, v, _) = draw(case, device)
        out, dy, dv = ours(case, dout, (y, v.zero_(), None))
        assert torch.equal(out, y)
        assert torch.equal(dy, dout)
        assert not dv.any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("pattern", ["ones", "one entry", "signs"])
    def test_largest_float(self, dtype: torch.dtype, pattern: str, device: torch.device) -> None:
        largest = torch.finfo(dtype).max
        v = torch.full((1, 1, 2, 16), largest, dtype=dtype, device=device)
        if pattern == "one entry":
            v[..., 1:] = 0
        elif pattern == "signs":
            v[..., ::2] *= -1
        y, dout = v.clone(), torch.randn(1, 1, 2, 16, device=device).to(dtype)
        out, dy, dv = (torch.empty_like(v) for _ in range(3))
        project(y, v, None, EPS, out)
        project_backward(dout, y, v, None, EPS, None, dy, dv)
        assert (out.double().abs() < 1e-6 * largest).all(), "y = v leaves nothing"
        assert dy.isfinite().all()
        assert dv.isfinite().all()
