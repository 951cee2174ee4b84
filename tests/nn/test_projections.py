from __future__ import annotations

import pytest
import torch

from exsel.nn.projections import PACKINGS, Geometry

GEOMETRIES = [Geometry(8, 8, 4), Geometry(8, 2, 4), Geometry(8, 1, 4)]
EQUAL_HEADS = ("heads", "four_parts")


def cases() -> list[tuple[str, Geometry]]:
    return [
        (name, geometry)
        for name in PACKINGS
        for geometry in GEOMETRIES
        if name not in EQUAL_HEADS or geometry.num_heads == geometry.num_kv_heads
    ]


@pytest.mark.parametrize(("name", "geometry"), cases())
def test_every_slot_goes_to_one_kind_in_the_order_of_heads(name: str, geometry: Geometry) -> None:
    packing = PACKINGS[name]
    slots = packing.slots(geometry.num_heads, geometry.num_kv_heads)
    packed = torch.arange(len(slots)).repeat_interleave(geometry.head_dim).expand(2, 3, -1)
    parts = packing.split(packed, geometry)
    for kind, part in parts.items():
        heads = geometry.num_heads if kind == "query" else geometry.num_kv_heads
        assert part.shape == (2, 3, heads, geometry.head_dim)
        assert [slots[slot] for slot in part[0, 0, :, 0].tolist()] == [kind] * heads
        assert part[0, 0, :, 0].tolist() == sorted(part[0, 0, :, 0].tolist())


@pytest.mark.parametrize(("name", "geometry"), cases())
def test_scaling_touches_the_heads_of_its_kinds_alone(name: str, geometry: Geometry) -> None:
    packing = PACKINGS[name]
    torch.manual_seed(0)
    packed = torch.randn(2, 3, len(packing.slots(geometry.num_heads, geometry.num_kv_heads)) * geometry.head_dim)
    tau = {
        kind: torch.randn(part.shape[:-1]) for kind, part in packing.split(packed, geometry).items() if kind != "key"
    } or {"key": torch.randn(2, 3, geometry.num_kv_heads)}
    scaled = packing.split(packing.scale(packed, tau, geometry), geometry)
    for kind, part in packing.split(packed, geometry).items():
        torch.testing.assert_close(scaled[kind], part * tau[kind].unsqueeze(-1) if kind in tau else part)


def test_a_part_of_the_heads_is_packed_alike() -> None:
    """Tensor parallel: each process has some of the heads."""
    geometry = Geometry(8, 2, 4)
    parts = PACKINGS["blocks"].split(torch.randn(1, 3, 6 * 4), geometry)
    assert {kind: part.shape[-2] for kind, part in parts.items()} == {"query": 4, "key": 1, "value": 1}


def test_codegen_has_values_before_keys_in_four_parts() -> None:
    assert PACKINGS["four_parts"].slots(4, 4) == ("query", "value", "key") * 4
