"""Decoding against the float64 reference, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from budget import assert_within_budget, root_mean_square
from exsel import reference

pytest.importorskip("triton")

from exsel.kernels.triton.decode import choose_splits, decode

# No rule chooses this kernel, and the interpreter takes minutes for it.
pytestmark = pytest.mark.slow

SMALL = {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1}
FLOATING = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-12


@dataclasses.dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    own_value: Tensor | None = None
    strength: Tensor | None = None
    query_scale: Tensor | None = None
    value_scale: Tensor | None = None
    attn_mask: Tensor | None = None

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5

    def expected(self, dtype: torch.dtype) -> Tensor:
        """The reference's result, computed in dtype."""
        query, key, value = self.query.to(dtype), self.key.to(dtype), self.value.to(dtype)
        y = reference.attention(
            query, key, value, self.attn_mask, 0.0, False, self.scale, self.query_scale, self.value_scale
        )
        return y if self.own_value is None else reference.exclude(y, self.own_value.to(dtype), self.strength, EPS)

    def decode(self, config: dict[str, int] | None = None, num_splits: int | None = None) -> Tensor:
        return decode(
            self.query,
            self.key,
            self.value,
            self.own_value,
            strength=self.strength,
            query_scale=self.query_scale,
            value_scale=self.value_scale,
            attn_mask=self.attn_mask,
            scale=self.scale,
            eps=EPS,
            config=config,
            num_splits=num_splits,
        )

    def check(self, config: dict[str, int] | None = SMALL, num_splits: int | None = None) -> Tensor:
        z = self.decode(config, num_splits)
        assert z.transpose(1, 2).is_contiguous()
        assert_within_budget([z], [self.expected(torch.float64)], [self.expected(self.query.dtype)])
        return z


@pytest.fixture
def make(device: torch.device):
    """Inputs whose last T keys are the new tokens'."""

    def make(
        *,
        batch: int = 2,
        heads: int = 2,
        kv_heads: int = 2,
        tokens: int = 1,
        keys: int = 33,
        head_dim: int = 16,
        dtype: torch.dtype = torch.float32,
        exclusive: bool = True,
    ) -> Inputs:
        def draw(heads: int, tokens: int) -> Tensor:
            return torch.randn(batch, heads, tokens, head_dim, device=device).to(dtype)

        query, key, value = draw(heads, tokens), draw(kv_heads, keys), draw(kv_heads, keys)
        own_value = value[:, :, -tokens:] if keys >= tokens else draw(kv_heads, tokens)
        return Inputs(query, key, value, own_value if exclusive else None)

    return make


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    ("tokens", "keys", "heads", "kv_heads", "head_dim"),
    [
        (1, 1, 1, 1, 16),
        (1, 300, 4, 2, 64),
        (2, 7, 3, 3, 8),
        (5, 33, 6, 2, 33),
        (16, 130, 2, 1, 80),
        (1, 130, 8, 1, 128),
        (3, 50, 8, 1, 16),
        (2, 40, 2, 1, 256),
    ],
)
def test_equals_the_reference(
    make, dtype: torch.dtype, tokens: int, keys: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    shape = {"batch": 1, "tokens": tokens, "keys": keys, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    make(**shape, dtype=dtype).check()


@pytest.mark.parametrize("num_splits", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("exclusive", [True, False])
def test_any_number_of_splits(make, num_splits: int, exclusive: bool) -> None:
    """Some chunks hold no key: 130 keys are five steps of 32."""
    make(tokens=2, keys=130, heads=4, batch=1, exclusive=exclusive).check(num_splits=num_splits)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_default_configuration(make, dtype: torch.dtype, head_dim: int) -> None:
    make(tokens=2, keys=150, heads=4, kv_heads=1, head_dim=head_dim, dtype=dtype).check(config=None)


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales(make, dtype: torch.dtype, num_splits: int) -> None:
    inputs = make(tokens=5, keys=70, heads=4, dtype=dtype)
    inputs.query_scale = 0.5 + torch.rand(2, 4, 5, device=inputs.query.device)
    inputs.value_scale = 0.5 + torch.rand(2, 2, 70, device=inputs.query.device)
    inputs.check(num_splits=num_splits)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_scales_broadcast(make, num_splits: int) -> None:
    inputs = make(tokens=5, keys=70, heads=4)
    inputs.query_scale = (0.5 + torch.rand(4, 1, device=inputs.query.device)).expand(2, 4, 5)
    inputs.value_scale = (0.5 + torch.rand(70, 2, device=inputs.query.device)).t().expand(2, 2, 70)
    inputs.check(num_splits=num_splits)


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("kind", ["head", "token"])
def test_strength(make, kind: str, num_splits: int) -> None:
    inputs = make(tokens=3, keys=70, heads=4)
    strength = torch.randn(4, 1, device=inputs.query.device) if kind == "head" else torch.randn(2, 4, 3)
    inputs.strength = strength.to(inputs.query.device).expand(2, 4, 3)
    inputs.check(num_splits=num_splits)


@pytest.mark.parametrize(
    ("dtype", "shape", "num_splits"),
    [
        (torch.bool, (2, 4, 5, 70), 1),
        (torch.bool, (2, 1, 5, 70), 3),
        (torch.bool, (1, 4, 1, 70), 1),
        (torch.bool, (2, 4, 5, 1), 3),
        (torch.float32, (2, 4, 5, 70), 3),
        (torch.float32, (1, 1, 5, 70), 1),
        (torch.bfloat16, (2, 1, 1, 70), 3),
    ],
)
def test_masks(make, dtype: torch.dtype, shape: tuple[int, ...], num_splits: int) -> None:
    inputs = make(tokens=5, keys=70, heads=4)
    mask = torch.randn(shape, device=inputs.query.device)
    inputs.attn_mask = (mask > 0 if dtype == torch.bool else mask.to(dtype)).expand(2, 4, 5, 70)
    inputs.check(num_splits=num_splits)


def test_mask_of_any_strides(make) -> None:
    inputs = make(tokens=5, keys=70, heads=4, batch=1)
    inputs.attn_mask = (torch.randn(1, 70, 5, 4, device=inputs.query.device) > 0).transpose(1, 3)
    inputs.check(num_splits=2)


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("hidden", [-math.inf, torch.finfo(torch.float32).min])
def test_left_padding_and_causality(make, hidden: float, num_splits: int) -> None:
    """The first sequence's first 40 tokens are padding: with -inf its first rows see nothing, with the least float
    they see all keys alike."""
    inputs = make(tokens=16, keys=50, heads=1, kv_heads=1, batch=2)
    position = torch.arange(50)
    allowed = position[None, :] <= position[-16:, None]
    allowed = allowed & (position >= torch.tensor([40, 0])[:, None, None])
    mask = torch.zeros(2, 1, 16, 50).masked_fill(~allowed.unsqueeze(1), hidden).to(inputs.query.device)
    inputs.attn_mask = mask
    z = inputs.check(num_splits=num_splits)
    if hidden == -math.inf:
        assert (z[0, :, :6] == 0).all()
        inputs.attn_mask = mask == 0
        assert torch.equal(inputs.decode(SMALL, num_splits), z)


@pytest.mark.parametrize("num_splits", [1, 2, 4])
def test_unused_slots_of_a_static_cache(make, num_splits: int) -> None:
    """What they hold does not matter, and some chunks hold nothing else."""
    inputs = make(tokens=2, keys=40, heads=4, dtype=torch.bfloat16)
    expected = inputs.expected(torch.float64), inputs.expected(torch.bfloat16)
    unused = torch.full_like(inputs.key[:, :, :1], math.nan).expand(-1, -1, 90, -1)
    inputs.key, inputs.value = torch.cat([inputs.key, unused], 2), torch.cat([inputs.value, unused], 2)
    inputs.value_scale = torch.ones(2, 2, 130, device=unused.device)
    inputs.value_scale[:, :, 40:] = math.nan
    inputs.attn_mask = (torch.arange(130, device=unused.device) < 40).expand(2, 4, 2, 130)
    assert_within_budget([inputs.decode(SMALL, num_splits)], [expected[0]], [expected[1]])


@pytest.mark.parametrize("num_splits", [1, 2])
def test_any_strides(make, num_splits: int) -> None:
    """[B, T, H, D], a fused projection, and a head dimension that is not the last in memory."""
    inputs = make(batch=1, tokens=5, keys=40, heads=4, kv_heads=2)
    expected = inputs.decode(SMALL, num_splits)
    fused = torch.cat([inputs.key, inputs.value], 1).transpose(1, 2).contiguous().transpose(1, 2)
    inputs.key, inputs.value = fused[:, :2], fused[:, 2:]
    inputs.query = inputs.query.transpose(1, 2).contiguous().transpose(1, 2)
    assert inputs.own_value is not None
    inputs.own_value = inputs.own_value.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(inputs.decode(SMALL, num_splits), expected)


@pytest.mark.parametrize("num_splits", [1, 2])
@pytest.mark.parametrize("length", [0.0, 1e-42, 1e-20, 1e18, 1e38])
def test_own_values_of_any_length(make, length: float, num_splits: int) -> None:
    """As the reference, whatever own values' squares would be: none has a NaN, and 0 removes nothing."""
    inputs = make(tokens=3, keys=40, heads=2)
    inputs.own_value = inputs.own_value / inputs.own_value.abs().amax(-1, keepdim=True) * length
    z = inputs.check(num_splits=num_splits)
    if length == 0:
        inputs.own_value = None
        assert torch.equal(inputs.decode(SMALL, num_splits), z)


def test_own_value_is_the_only_key(make) -> None:
    """y is then v, and nothing remains but what rounding leaves."""
    inputs = make(tokens=1, keys=1, head_dim=64)
    z = inputs.decode(SMALL)
    assert root_mean_square(z) < 1e-7 * root_mean_square(inputs.value)


def test_large_scores(make) -> None:
    """Their exponentials overflow, and those of whole chunks vanish."""
    inputs = make(tokens=2, keys=130, heads=2)
    inputs.query = inputs.query * 1000
    inputs.check(num_splits=4)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_same_bits_on_every_run(make, num_splits: int) -> None:
    inputs = make(batch=1, tokens=4, keys=100)
    assert torch.equal(inputs.decode(SMALL, num_splits), inputs.decode(SMALL, num_splits))


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_nan_is_not_hidden(make, num_splits: int) -> None:
    inputs = make(batch=1, tokens=2, keys=64)
    inputs.query[0, 0, 1, 3] = math.nan
    z = inputs.decode(SMALL, num_splits)
    assert z[0, 0, 1].isnan().all()
    assert z[0, 0, 0].isfinite().all()


@pytest.mark.parametrize("programs", [1, 8, 100, 1000])
@pytest.mark.parametrize("steps", [1, 3, 64, 1000, 16384])
def test_splits_occupy_the_device_once(programs: int, steps: int) -> None:
    splits = choose_splits(programs, steps, multiprocessors=132)
    assert 1 <= splits <= steps
    assert splits == 1 or programs * splits <= 2 * 132
    steps_a_chunk = math.ceil(steps / splits)
    assert (splits - 1) * steps_a_chunk < steps, "a chunk without keys"


def test_one_program_a_multiprocessor_is_not_split() -> None:
    assert choose_splits(programs=264, steps=64, multiprocessors=132) == 1
    assert choose_splits(programs=8, steps=512, multiprocessors=132) == 32
