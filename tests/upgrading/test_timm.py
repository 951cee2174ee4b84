"""timm's families of vision transformers: upgraded and right, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import exsel
from exsel.upgrading.attention_layers import targets
from upgrading.layer_checks import check_alike, check_model, randomise, run
from upgrading.timm_models import import_timm

timm = import_timm()

# Pooled: of the last layer's queries the class token's alone would count, and log 1 = 0.
_VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "global_pool": "avg"}
_WINDOWS: dict[str, Any] = {"img_size": 64, "depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2), "window_size": 4}

#: By name, options and attention class.
SUPPORTED = {
    "vit_tiny_patch16_224": (_VIT, "attention.Attention"),
    "vit_base_patch16_rope_224": (_VIT, "attention.AttentionRope"),
    "beit_base_patch16_224": (_VIT, "beit.Attention"),
    "eva02_tiny_patch14_224": ({**_VIT, "img_size": 56}, "eva.EvaAttention"),
    "eva_giant_patch14_224": ({**_VIT, "img_size": 56}, "eva.EvaAttention"),
    "swin_tiny_patch4_window7_224": (_WINDOWS, "swin_transformer.WindowAttention"),
    "samvit_base_patch16": (_VIT, "vision_transformer_sam.Attention"),
    "vit_relpos_small_patch16_224": (_VIT, "vision_transformer_relpos.RelPosAttention"),
    "mobilevit_xxs": ({"img_size": 128}, "attention.Attention"),
    "test_vit3": ({}, "attention.Attention"),
}

REFUSED = {
    "swinv2_tiny_window8_256": ({**_WINDOWS, "img_size": 64}, "calls no attention function"),
    "xcit_nano_12_p16_224": ({"img_size": 64, "depth": 2}, "between channels, not tokens"),
    "cait_xxs24_224": ({"img_size": 64, "depth": 2}, "talking heads"),
    "hiera_tiny_224": ({"img_size": 64, "stages": (1, 1, 1, 1)}, "queries are pooled"),
    "pvt_v2_b0": ({}, "reduced sequence"),
    "convit_tiny": ({"img_size": 64, "depth": 2}, "GPSA calls no attention function"),
    "resnet18": ({}, "has no self-attention"),
}


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=4, **options)
    for parameter in model.parameters():
        if parameter.ndim < 3:  # layer scales are too small to show anything
            nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.15)
    return model.eval()


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported(name: str) -> None:
    options, cls = SUPPORTED[name]
    model = _build(name, options)
    found = [target for target in targets(model) if not target.left_alone]
    assert {type(model.get_submodule(target.name)).__module__.split(".")[-1] for target in found} == {cls.split(".")[0]}
    assert {target.cls for target in found} == {cls.split(".")[1]}
    images = torch.randn(2, 3, *(options.get("img_size", model.default_cfg["input_size"][-1]),) * 2)  # type: ignore[index]
    check_model(model, lambda: model(images))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva_giant_patch14_224"])
def test_tokens_alike_leave_nothing(name: str) -> None:
    model = _build(name, SUPPORTED[name][0])
    layer: Any = model.get_submodule("blocks.0.attn")
    num_tokens = model.patch_embed.num_patches + 1  # type: ignore[union-attr, operator]
    check_alike(model, layer, (2, num_tokens, 48))


def test_windows_alike_leave_nothing() -> None:
    model = _build("swin_tiny_patch4_window7_224", _WINDOWS)
    layer: Any = next(model.get_submodule(target.name) for target in targets(model))
    check_alike(model, layer, (8, layer.window_area, 24))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, reason = REFUSED[name]
    model = _build(name, options)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=reason):
        exsel.upgrade(model, exclusive=True)
    assert [type(module) for module in model.modules()] == classes


def test_attention_pooling_is_left_alone() -> None:
    model = _build("test_vit3", {})
    exsel.upgrade(model, exclusive=True)
    assert type(model.attn_pool).__name__ == "AttentionPoolLatent"
    assert not hasattr(model.attn_pool, "exsel")
    assert hasattr(model.get_submodule("blocks.0.attn"), "exsel")


def test_attention_written_out_is_switched_over() -> None:
    """The same numbers whichever way the layer was set to go; the setting comes back with the layer."""
    model = _build("vit_tiny_patch16_224", _VIT)
    images = torch.randn(2, 3, 64, 64)
    exsel.upgrade(model, exclusive=True, selective=True)
    randomise(model)
    (fused,) = run(lambda: model(images))
    parameters = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    exsel.downgrade(model)
    for name in ("blocks.0.attn", "blocks.1.attn"):
        model.get_submodule(name).fused_attn = False  # type: ignore[assignment]
    check_model(model, lambda: model(images))
    exsel.upgrade(model, exclusive=True, selective=True)
    model.load_state_dict(parameters)
    assert torch.equal(run(lambda: model(images))[0], fused)
    exsel.downgrade(model)
    assert model.get_submodule("blocks.0.attn").fused_attn is False


@pytest.mark.parametrize(("heads_first", "packing"), [(True, "heads"), (False, "blocks")])
def test_packing_by_flag(heads_first: bool, packing: str) -> None:
    layer = timm.models.maxxvit.AttentionCl(32, dim_head=8, head_first=heads_first)
    model = nn.Sequential(layer)
    (target,) = targets(model)
    assert target.projections is not None
    assert target.projections.packings == {"qkv": packing}
    x = torch.randn(2, 5, 32)
    check_model(model, lambda: model(x))
    check_alike(model, layer, (2, 5, 32))


def test_timms_own_saving(tmp_path: Path) -> None:
    """A plain model takes none of it, a model upgraded alike takes all."""
    model = _build("vit_tiny_patch16_224", _VIT)
    exsel.upgrade(model, exclusive=True)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    weights = str(tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fixed_strength"):
        timm.create_model("vit_tiny_patch16_224", checkpoint_path=weights, num_classes=4, **_VIT)
    other = exsel.upgrade(timm.create_model("vit_tiny_patch16_224", num_classes=4, **_VIT), exclusive=True).eval()
    timm.models.load_checkpoint(other, weights)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(run(lambda: other(images))[0], run(lambda: model(images))[0])
