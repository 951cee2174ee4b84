"""Tables about attention classes: their projections, and why some cannot be upgraded.

A class is named by package and name, ``gptj.GPTJAttention``, in timm also by module, ``timm.eva.EvaAttention``. A ``*``
matches anything. A class that calls an attention function (transformers' or PyTorch's) needs an entry only if its
projections' names are not among :data:`USUAL`. A class that writes its attention out, as matrix products and a
softmax, always needs one: its code does not show what lies between its projections and the weighted sum of values.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from exsel.nn.projections import Projections

_Value = TypeVar("_Value")


def _by_class(rows: Mapping[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in rows.items() for name in names.split()}


#: For modules that call an attention function. The first entry applies of which the module has all names as children.
USUAL: tuple[Projections, ...] = tuple(
    map(
        Projections.read,
        (
            *("q_proj k_proj v_proj", "query key value", "q k v", "q_lin k_lin v_lin", "linear_q linear_k linear_v"),
            *("to_q to_k to_v", "to_q:query to_kv:key_value", "Wq Wk Wv", "wq wk wv"),
            *("qkv:blocks", "qkv_proj:blocks", "Wqkv:blocks", "c_attn:blocks", "to_qkv:blocks", "in_proj:blocks"),
        ),
    )
)

#: By their projections alone, classes that call an attention function, and whose children's names do not tell the
#: packing. By projections and output projection, classes that write their attention out: temperatures scale the outputs
#: of their projections; the exclusive projection is applied to the input of the output projection.
_PROJECTIONS: Mapping[tuple[Any, ...], str] = {
    ("query_key_value:heads",): "gpt_neox.GPTNeoXAttention persimmon.PersimmonAttention",
    ("c_attn:blocks",): "gpt2.GPT2Attention decision_transformer.DecisionTransformerGPT2Attention",
    # The query projection holds an output gate too.
    ("q_proj:query_gate k_proj:key v_proj:value",): (
        "qwen3_next.Qwen3NextAttention qwen3_5.Qwen3_5Attention qwen3_5_moe.Qwen3_5MoeAttention "
        "qwen4_exp.Qwen4ExpTextAttention"
    ),
    ("qkv:blocks",): (
        "timm.attention.Attention timm.beit.Attention timm.davit.WindowAttention timm.fastvit.Attention "
        "timm.metaformer.Attention timm.swin_transformer.WindowAttention timm.eva.EvaAttention timm.volo.Attention "
        "timm.vision_transformer_relpos.RelPosAttention timm.vision_transformer_sam.Attention "
        "timm.attention.AttentionRope"
    ),
    ("qkv:heads",): "timm.tiny_vit.Attention",
    ("query_key_value:heads", "dense"): "bloom.BloomAttention gpt_neox_japanese.GPTNeoXJapaneseAttention",
    ("query_key_value:groups", "dense"): "falcon.FalconAttention falcon.FalconFlashAttention2",
    ("qkv_proj:four_parts", "out_proj"): "codegen.CodeGenAttention",
    ("Wqkv:blocks", "out_proj"): "mpt.MptAttention",
    ("c_attn:blocks", "c_proj"): "openai.Attention imagegpt.ImageGPTAttention",
    ("att_proj:blocks", "out_proj"): "bark.BarkSelfAttention",
    ("qkv:blocks", "proj"): (
        "*.*Sam*Vision*Attention seggpt.SegGptAttention vitdet.VitDetAttention mgp_str.MgpstrAttention "
        "slanext.SLANeXtVisionAttention got_ocr2.GotOcr2VisionAttention pp_formulanet.PPFormulaNetVisionAttention"
    ),
    ("qkv:blocks", "projection"): "blip.BlipAttention",
    ("qkv:blocks", ""): "timesformer.TimesformerSelfAttention",
    ("q_proj k_proj v_proj", "out_proj"): (
        "gptj.GPTJAttention gpt_neo.GPTNeoSelfAttention xglm.XGLMAttention dab_detr.DetrAttention "
        "groupvit.GroupViTAttention led.LEDDecoderAttention mvp.MvpAttention mask2former.Mask2FormerAttention "
        "oneformer.OneFormerAttention speecht5.SpeechT5Attention table_transformer.TableTransformerAttention "
        "trocr.TrOCRAttention fsmt.Attention"
    ),
    ("query_proj key_proj value_proj", "out_proj"): "prophetnet.ProphetNetAttention",
    # Relative positions go through the same projections.
    ("query_proj key_proj value_proj", "", True): (
        "deberta_v2.DisentangledSelfAttention sew_d.DisentangledSelfAttention"
    ),
    ("q_proj k_proj v_proj", "post"): "gemma4.Gemma4AudioAttention",
    ("q_proj k_proj v_proj", ""): "gemma3n.Gemma3nAudioAttention",
    ("q_lin k_lin v_lin", "out_lin"): "xlm.MultiHeadAttention flaubert.MultiHeadAttention",
    ("q k v", "o"): "mpnet.MPNetSelfAttention longt5.LongT5LocalAttention",
    ("project_q project_k project_v", "attention_out"): "cpmant.CpmAntAttention",
    ("query key value", "dense"): "tvp.TvpAttention",
    ("linear_q linear_k linear_v", "linear_out"): "fastspeech2_conformer.FastSpeech2ConformerAttention",
    ("query key value", "out_proj"): (
        "grounding_dino.GroundingDinoMultiheadAttention mm_grounding_dino.MMGroundingDinoMultiheadAttention "
        "omdet_turbo.OmDetTurboMultiheadAttention"
    ),
    ("query key value", ""): (
        "rembert.RemBertSelfAttention megatron_bert.MegatronBertSelfAttention canine.CanineSelfAttention "
        "flava.FlavaSelfAttention git.GitSelfAttention lxmert.LxmertAttention tapas.TapasSelfAttention "
        "roformer.RoFormerSelfAttention visual_bert.VisualBertSelfAttention bros.BrosSelfAttention "
        "layoutlmv3.LayoutLMv3SelfAttention blip_text.BlipTextSelfAttention blip.BlipTextSelfAttention "
        "data2vec.Data2VecVisionSelfAttention data2vec.Data2VecVisionSdpaSelfAttention vilt.ViltSelfAttention "
        "mobilevit.MobileViTSelfAttention clap.ClapAudioSelfAttention donut.DonutSwinSelfAttention "
        "maskformer.MaskFormerSwinSelfAttention swin2sr.Swin2SRSelfAttention swinv2.Swinv2SelfAttention "
        "big_bird.BigBirdSelfAttention bigbird_pegasus.BigBirdPegasusSelfAttention "
        "zoedepth.ZoeDepthMultiheadAttention layoutlmv2.LayoutLMv2SelfAttention"
    ),
}
PROJECTIONS = {name: Projections.read(*row) for row, names in _PROJECTIONS.items() for name in names.split()}

#: Classes in which an attribute chooses the packing: the attribute, the packing if it is true, and if it is false.
PACKED_BY_FLAG: Mapping[str, tuple[str, str, str]] = {"timm.maxxvit.AttentionCl": ("head_first", "heads", "blocks")}

#: exsel's own layers. They have the mechanisms in their code; diagnostics and experiments insert their own passes.
OWN: Mapping[str, Projections] = {"exsel.ExselAttention": Projections.read("q_proj k_proj v_proj")}

_LATENT = "latent attention: what it caches are not the values that it mixes"

#: Modules with a child or a true attribute of this name are refused, with the reason.
REFUSED_ATTRIBUTES: Mapping[str, str] = {
    "kv_b_proj": _LATENT,
    "kv_a_proj_with_mqa": _LATENT,
    "is_kv_shared_layer": "this layer attends with another layer's keys and values: it has none of its own",
    "rotary_value": "it rotates values too",
    "reorder_and_upcast_attn": "reorder_and_upcast_attn goes around the attention function: switch it off",
}

#: Classes that are refused, by the reason.
REFUSED = _by_class(
    {
        "differential attention: its output is a difference of two attentions": (
            "diffllama.DiffLlamaAttention timm.diff_attention.DiffAttention "
            "timm.vision_transformer.DiffParallelScalingBlock"
        ),
        "its keys and values are repeated over experts in an order of their own": "jetmoe.JetMoeAttention",
        "linear attention: it has no softmax, and no values of its own kind": (
            "minimax.MiniMaxLightningAttention olmo_hybrid.OlmoHybridLinearAttentionDecoderLayer "
            "glm5_next.Glm5NextTextLinearAttention bailing_hybrid.BailingHybridDeltaAttention rwkv.RwkvSelfAttention "
            "kimi_linear.KimiLinearDeltaAttention mobilevitv2.MobileViTV2LinearSelfAttention "
            "swiftformer.SwiftFormerEfficientAdditiveAttention"
        ),
        "linear attention: it has no softmax over tokens": (
            "timm.mobilevit.LinearSelfAttention timm.swiftformer.EfficientAdditiveAttention "
            "timm.coat.FactorAttnConvRelPosEnc timm.volo.OutlookAttention"
        ),
        "its keys and values are a reduced sequence: its tokens have no own values": (
            "pvt.PvtEfficientSelfAttention pvt_v2.PvtV2SelfAttention glpn.GLPNEfficientSelfAttention "
            "segformer.SegformerAttention hiera.HieraMaskUnitAttention timm.attention2d.MultiQueryAttention2d "
            "timm.attention2d.MultiQueryAttentionV2 timm.attention2d.Attention2d timm.nextvit.EfficientAttention "
            "timm.pvt_v2.Attention timm.twins.GlobalSubSampleAttn"
        ),
        "sparse attention with code of its own for parts of the sequence": (
            "*.*BlockSparseAttention longformer.LongformerSelfAttention led.LEDEncoderSelfAttention "
            "reformer.LSHSelfAttention reformer.LocalSelfAttention pegasus_x.PegasusXGlobalLocalAttention "
            "informer.InformerProbSparseAttention"
        ),
        "its attention matrix is an approximation in code of its own": (
            "mra.MraSelfAttention nystromformer.NystromformerSelfAttention yoso.YosoSelfAttention"
        ),
        "its queries are pooled: they are not its values' tokens": "funnel.FunnelRelMultiheadAttention",
        "its queries are pooled: its outputs belong to no single token": (
            "timm.hiera.MaskUnitAttention timm.hieradet_sam2.MultiScaleAttention timm.mvitv2.MultiScaleAttention"
        ),
        "its values are convolved: they are not single tokens' own": "cvt.CvtSelfAttention",
        "its keys and values are convolved: its tokens have no own values": (
            "timm.cpubone.ConvAttention timm.lowformer.ConvAttention timm.nextvit.ConvAttention timm.iformer.SHMA"
        ),
        "it mixes attention with convolutions": "convbert.ConvBertSelfAttention fun_asr_nano.FunAsrNanoAttention",
        "it attends by autocorrelation of whole sequences": "autoformer.AutoformerAttention",
        "it adds a bias to values after their projection": "deberta.DisentangledSelfAttention",
        "two streams share their attention": "lilt.LiltSelfAttention luke.LukeSelfAttention",
        "its projections are quantised in code of its own": "ibert.IBertSelfAttention",
        "its projections are convolutions over channels first": "squeezebert.SqueezeBertSelfAttention",
        "it hands its weights, not its values, to PyTorch's attention": "wavlm.WavLMAttention",
        _LATENT: "deepseek_v4.DeepseekV4Attention",
        "it rotates values too": "clvp.ClvpSelfAttention",
        "it adds relative positions to what it mixes": "vits.VitsAttention",
        "it is exclusive already, by its own code": "neomme.NeoMMEAttention",
        "it attends to its own and the encoder's tokens at once": (
            "t5gemma2.T5Gemma2MergedAttention diffusion_gemma.DiffusionGemmaDecoderTextAttention"
        ),
        "it attends to its own and to other tokens with the same weights": (
            "superglue.SuperGlueSelfAttention perceiver.PerceiverSelfAttention"
        ),
        "its weights are no linear layers": "xlnet.XLNetRelativeAttention",
        "its projections are convolutions": (
            "janus.JanusVQVAEAttnBlock chameleon.ChameleonVQVAEEncoderAttnBlock levit.LevitAttention "
            "emu3.Emu3VQVAEAttentionBlock"
        ),
        "its queries, keys and values are made outside it": "dab_detr.DabDetrAttention",
        "several streams of tokens share their keys and values": "prophetnet.ProphetNetNgramSelfAttention",
        "its attention is between channels, not tokens": (
            "timm.xcit.XCA timm.edgenext.CrossCovarianceAttn timm.davit.ChannelAttention timm.davit.ChannelAttentionV2"
        ),
        "it attends in windows that are packed into a dimension of their own": (
            "timm.nest.Attention timm.twins.LocallyGroupedAttn"
        ),
        "talking heads: its heads mix each other's weights, so that no head has an own value": (
            "timm.cait.TalkingHeadAttn"
        ),
    }
)

NO_OWN_VALUES = "cross-attention has no own values"
#: Classes that are left alone, by the reason. Despite their names, they do not attend to their own tokens.
LEFT_ALONE = _by_class(
    {
        NO_OWN_VALUES: "timm.cait.ClassAttn timm.volo.ClassAttention",
        "deformable attention samples points: it has no own values": "*.*MultiscaleDeformableAttention",
        "it draws a map of attention and mixes nothing": "*.*MHAttentionMap",
        "it attends to other tokens than its own": (
            "grounding_dino.GroundingDinoBiMultiHeadAttention mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention "
            "groupvit.GroupViTAssignAttention evolla.EvollaSequenceCompressorAttention "
            "oneformer.OneFormerTextMapperAttention esmfold2.EsmFold2RowAttentionPooling"
        ),
        "it is no attention over tokens": (
            "slanet.SLANetAttentionGRUCell slanext.SLANeXtAttentionGRUCell patchtsmixer.PatchTSMixerGatedAttention "
            "inkling2.Inkling2BlockAttentionResidual inkling2_loop.Inkling2LoopBlockAttentionResidual "
            "inkling2_loop.Inkling2LoopMessageAttentionResidual "
            "phi4_multimodal.Phi4MultimodalAudioRelativeAttentionBias "
            "lxmert.LxmertAttentionOutput neomme.NeoMMEExclusiveSelfAttention cvt.CvtSelfAttentionConvProjection "
            "cvt.CvtSelfAttentionProjection cvt.CvtSelfAttentionLinearProjection "
            "florence2.Florence2VisionChannelAttention"
        ),
    }
)

#: Classes that can be exclusive but not selective, by the reason.
REFUSED_SELECTIVE = _by_class(
    {
        "its scores are cosines, in which a query's temperature cancels": (
            "swinv2.Swinv2SelfAttention swin2sr.Swin2SRSelfAttention"
        ),
        "its tokens come before the batch, so that their positions are not known": "fsmt.Attention",
    }
)

#: Names of head sizes, of numbers of heads, and of numbers of key/value heads in attention modules.
HEAD_DIMS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head", "d_head")
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads", "heads", "nhead")
NUM_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")


def look_up(table: Mapping[str, _Value], cls: type) -> _Value | None:
    """The value that ``table`` has for a class, or ``None``."""
    packages = cls.__module__.split(".")
    package = packages[2] if packages[:2] == ["transformers", "models"] else packages[0]
    key = f"{f'timm.{packages[-1]}' if package == 'timm' else package}.{cls.__name__}"
    if key in table:
        return table[key]
    return next((value for name, value in table.items() if "*" in name and fnmatchcase(key, name)), None)


def switches(cls: type) -> set[str]:
    """What is true of an upgraded module, so that it calls an attention function where it might write attention out."""
    is_timm = cls.__module__.startswith("timm.")
    return {"fused_attn"} & {name for base in cls.__mro__ if is_timm for name in inspect.get_annotations(base)}
