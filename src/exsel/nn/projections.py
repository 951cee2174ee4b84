"""How a layer's projections hold the heads of its queries, keys and values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: What each head-sized slot of a projection's output is, in order: "query", "key", "value", or "" for something else.
Slots = tuple[str, ...]
#: What has heads in an attention layer.
KINDS = ("query", "key", "value")


@dataclass(frozen=True)
class Geometry:
    """The heads of one attention layer: H query heads, Hkv key/value heads, D numbers each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Projections:
    """The projections of an attention module.

    Args:
        packings: by each projection's name, how its output is packed: a key of :data:`PACKINGS`.
        output: for attention that is written out, the output projection's name, or ``""`` if the module returns the
            weighted sum of values itself. ``None``: the module calls an attention function.
        reused: whether the projections are also called on inputs other than the tokens.
    """

    packings: Mapping[str, str]
    output: str | None = None
    reused: bool = False

    @classmethod
    def read(cls, text: str, output: str | None = None, reused: bool = False) -> Projections:
        """Read ``"q_proj k_proj v_proj"`` (query, key and value, in this order), or ``"name:packing …"``."""
        names = text.split()
        if ":" not in text:
            return cls(dict(zip(names, KINDS, strict=True)), output, reused)
        return cls(dict(name.split(":") for name in names), output, reused)


@dataclass(frozen=True)
class Packing:
    """The order of heads in a projection's output."""

    name: str
    slots: Callable[[int, int], Slots]  # of H and Hkv

    def split(self, packed: Tensor, geometry: Geometry, kinds: Container[str] = KINDS) -> dict[str, Tensor]:
        """``[…, T, slots·D]`` → by kind ``[…, T, heads, D]``, views where the heads of a kind lie evenly."""
        *rest, size = packed.shape
        states = packed.view(*rest, size // geometry.head_dim, geometry.head_dim)
        if self.name in KINDS:
            return {self.name: states}
        where = _where(self.slots, size // geometry.head_dim, geometry)
        return {kind: _take(states, where[kind]) for kind in where if kind in kinds}

    def scale(self, packed: Tensor, tau: Mapping[str, Tensor], geometry: Geometry) -> Tensor:
        """``[…, T, slots·D]`` with the heads of each kind times τ ``[…, T, heads]``."""
        states = packed.unflatten(-1, (-1, geometry.head_dim))
        factor = torch.ones(states.shape[:-1], dtype=next(iter(tau.values())).dtype, device=packed.device)
        for kind, where in _where(self.slots, states.shape[-2], geometry).items():
            if kind in tau:
                factor = factor.index_copy(-1, torch.tensor(list(where), device=packed.device), tau[kind].contiguous())
        scaled: Tensor = (states * factor.unsqueeze(-1)).to(packed.dtype)
        return scaled.flatten(-2)


def _where(slots_of: Callable[[int, int], Slots], num_slots: int, geometry: Geometry) -> Mapping[str, Sequence[int]]:
    """The slots of each kind, kept for the next pass; a compiler follows no cache, and keeps its own result."""
    find = _find_slots if torch.compiler.is_compiling() else _kept_slots
    return find(slots_of, num_slots, geometry)


def _find_slots(
    slots_of: Callable[[int, int], Slots], num_slots: int, geometry: Geometry
) -> Mapping[str, Sequence[int]]:
    """The slots of each kind: a range where they lie evenly."""
    slots = slots_of(geometry.num_heads, geometry.num_kv_heads)
    if num_slots != len(slots):  # tensor parallel: this process has its part of the heads
        parts = len(slots) // num_slots
        slots = slots_of(geometry.num_heads // parts, geometry.num_kv_heads // parts)
    assert num_slots == len(slots), f"{num_slots} heads in a projection that should have {len(slots)}"
    return {
        kind: _as_range([index for index, found in enumerate(slots) if found == kind])
        for kind in KINDS
        if kind in slots
    }


_kept_slots = functools.cache(_find_slots)


def _as_range(where: list[int]) -> Sequence[int]:
    even = range(where[0], where[-1] + 1, where[1] - where[0] if len(where) > 1 else 1)
    return even if list(even) == where else where


def _take(states: Tensor, where: Sequence[int]) -> Tensor:
    """The heads at ``where`` of states ``[…, slots, D]``."""
    if not isinstance(where, range):
        return states[..., where, :]
    if where.step == 1:  # the same view in a third of the time
        return states.narrow(-2, where.start, len(where))
    return states[..., where.start : where.stop : where.step, :]


def _one(kind: str) -> Callable[[int, int], Slots]:
    return lambda heads, kv_heads: (kind,) * (heads if kind == "query" else kv_heads)


def _in_four_parts(heads: int, kv_heads: int) -> Slots:
    assert heads == kv_heads
    return (("query",) * (heads // 4) + ("value",) * (heads // 4) + ("key",) * (heads // 4)) * 4


#: The known packings by name. ``query``, ``key`` and ``value`` hold one kind. ``query_gate`` holds each head's query
#: and its output gate, ``key_value`` all keys and then all values. Fused projections: ``blocks`` holds all queries, all
#: keys, all values; ``heads`` the query, key and value of one head after the other; ``groups`` for each key/value head
#: its queries, its key, its value; ``four_parts`` is CodeGen's: four parts, in each of them values before keys.
PACKINGS: Mapping[str, Packing] = {
    packing.name: packing
    for packing in (
        Packing("query", _one("query")),
        Packing("key", _one("key")),
        Packing("value", _one("value")),
        Packing("query_gate", lambda heads, kv_heads: ("query", "") * heads),
        Packing("key_value", lambda heads, kv_heads: ("key",) * kv_heads + ("value",) * kv_heads),
        Packing("blocks", lambda heads, kv_heads: ("query",) * heads + ("key",) * kv_heads + ("value",) * kv_heads),
        Packing("heads", lambda heads, kv_heads: ("query", "key", "value") * heads),
        Packing("groups", lambda heads, kv_heads: (("query",) * (heads // kv_heads) + ("key", "value")) * kv_heads),
        Packing("four_parts", _in_four_parts),
    )
}
