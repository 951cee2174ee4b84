"""The part of the table of architectures that is for timm and diffusers: see :mod:`exsel.upgrading.architectures`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

#: By packing of the fused projection ``qkv`` of timm's classes, as ``timm.`` module ``.`` class.
FUSED: Mapping[str, str] = {
    "blocks": (
        "timm.attention.Attention timm.beit.Attention timm.davit.WindowAttention timm.fastvit.Attention "
        "timm.metaformer.Attention timm.swin_transformer.WindowAttention timm.eva.EvaAttention timm.volo.Attention "
        "timm.vision_transformer_relpos.RelPosAttention timm.vision_transformer_sam.Attention "
        "timm.attention.AttentionRope"
    ),
    "heads": "timm.tiny_vit.Attention",
}

#: The same where an attribute of the module chooses: the attribute, the packing where it is true, where it is false.
FUSED_BY_FLAG: Mapping[str, tuple[str, str, str]] = {"timm.maxxvit.AttentionCl": ("head_first", "heads", "blocks")}

#: Attributes of a module that choose between an attention function and the same attention written out, and the value
#: that an upgraded module has for them, whatever it was before. By package.
SWITCHES: Mapping[str, Mapping[str, bool]] = {"timm": {"fused_attn": True}}

#: Classes whose queries are not their keys' tokens. Left alone, like cross-attention.
ACROSS: frozenset[str] = frozenset({"timm.cait.ClassAttn", "timm.volo.ClassAttention"})

_CHANNELS = "its attention is between channels, not tokens"
_CONVOLVED = "its keys and values are convolved: its tokens have no own values"
_DIFFERENCE = "differential attention: its output is a difference of two attentions"
_LINEAR = "linear attention: it has no softmax over tokens"
_PACKED = "it attends in windows that are packed into a dimension of their own"
_POOLED = "its queries are pooled: its outputs belong to no single token"
_REDUCED = "its keys and values are a reduced sequence: its tokens have no own values"
_TALKING = "talking heads: its heads mix each other's weights, so that no head has an own value"

#: By class, with the reason.
REFUSED: dict[str, str] = {
    f"timm.{name}": reason
    for reason, names in (
        (_CHANNELS, "xcit.XCA edgenext.CrossCovarianceAttn davit.ChannelAttention davit.ChannelAttentionV2"),
        (_CONVOLVED, "cpubone.ConvAttention lowformer.ConvAttention nextvit.ConvAttention iformer.SHMA"),
        (_DIFFERENCE, "diff_attention.DiffAttention vision_transformer.DiffParallelScalingBlock"),
        (
            _LINEAR,
            "mobilevit.LinearSelfAttention swiftformer.EfficientAdditiveAttention coat.FactorAttnConvRelPosEnc "
            "volo.OutlookAttention",
        ),
        (_PACKED, "nest.Attention twins.LocallyGroupedAttn"),
        (_POOLED, "hiera.MaskUnitAttention hieradet_sam2.MultiScaleAttention mvitv2.MultiScaleAttention"),
        (
            _REDUCED,
            "attention2d.MultiQueryAttention2d attention2d.MultiQueryAttentionV2 attention2d.Attention2d "
            "nextvit.EfficientAttention pvt_v2.Attention twins.GlobalSubSampleAttn",
        ),
        (_TALKING, "cait.TalkingHeadAttn"),
    )
    for name in names.split()
}


def switches(cls: type) -> Mapping[str, bool]:
    """What an upgraded module of class ``cls`` has switched; see :data:`SWITCHES`."""
    package = SWITCHES.get(cls.__module__.partition(".")[0], {})
    return {name: value for name, value in package.items() if name in _annotations(cls)}


def _annotations(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
