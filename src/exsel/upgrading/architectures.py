"""Where attention classes keep their queries, keys and values: one table for every architecture.

A class that calls an attention function (transformers' interface, or PyTorch's) needs no row but the names of its
projections, and these only for temperatures. A class that writes its attention out is supported by name alone: nobody
can see from outside what lies between its projections and its mixing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exsel.upgrading import architectures_vision


@dataclass(frozen=True)
class Layout:
    """The children of an attention module that matter.

    Args:
        projections: by name, how each is packed: a name in :data:`exsel.nn.projections.PACKINGS`.
        output: only for attention that is written out: the output projection, or ``""`` where the module has none
            and returns what it mixed. ``None``: the module calls an attention function.
        reuses_projections: whether it puts other things than its tokens through its projections, after these.
    """

    projections: Mapping[str, str]
    output: str | None = None
    reuses_projections: bool = False


def _separate(query: str, key: str, value: str, output: str | None = None) -> Layout:
    return Layout({query: "query", key: "key", value: "value"}, output)


#: Tried in this order on a module that calls an attention function: the first whose children it has.
LAYOUTS: tuple[Layout, ...] = (
    _separate("q_proj", "k_proj", "v_proj"),
    _separate("query", "key", "value"),
    _separate("q", "k", "v"),
    _separate("q_lin", "k_lin", "v_lin"),
    _separate("linear_q", "linear_k", "linear_v"),
    _separate("to_q", "to_k", "to_v"),
    Layout({"to_q": "query", "to_kv": "key_value"}),
    _separate("Wq", "Wk", "Wv"),
    _separate("wq", "wk", "wv"),
    Layout({"qkv": "blocks"}),
    Layout({"qkv_proj": "blocks"}),
    Layout({"Wqkv": "blocks"}),
    Layout({"c_attn": "blocks"}),
)


def key(cls: type) -> str:
    """A class as the tables name it: its package and name, ``gptj.GPTJAttention``; in timm the module's as well."""
    packages = cls.__module__.split(".")
    if packages[0] == "timm":
        return f"timm.{packages[-1]}.{cls.__name__}"
    return f"{packages[2] if packages[:2] == ['transformers', 'models'] else packages[0]}.{cls.__name__}"


def _by_class(rows: tuple[tuple[Layout, str], ...]) -> dict[str, Layout]:
    return {name: layout for layout, names in rows for name in names.split()}


_QUERY_GATE = Layout({"q_proj": "query_gate", "k_proj": "key", "v_proj": "value"})

#: By class: what the children's names do not tell. The second half is attention that is written out: it is scaled
#: at its projections, and projected before its output projection.
CLASSES: Mapping[str, Layout] = _by_class(
    (
        *((Layout({"qkv": packing}), names) for packing, names in architectures_vision.FUSED.items()),
        (Layout({"query_key_value": "heads"}), "gpt_neox.GPTNeoXAttention persimmon.PersimmonAttention"),
        # Another path, which reorder_and_upcast_attn switches on, writes the attention out; it is refused below.
        (Layout({"c_attn": "blocks"}), "gpt2.GPT2Attention decision_transformer.DecisionTransformerGPT2Attention"),
        # The query projection holds an output gate too.
        (
            _QUERY_GATE,
            "qwen3_next.Qwen3NextAttention qwen3_5.Qwen3_5Attention qwen3_5_moe.Qwen3_5MoeAttention "
            "qwen4_exp.Qwen4ExpTextAttention",
        ),
        (
            Layout({"query_key_value": "heads"}, "dense"),
            "bloom.BloomAttention gpt_neox_japanese.GPTNeoXJapaneseAttention",
        ),
        (Layout({"query_key_value": "groups"}, "dense"), "falcon.FalconAttention falcon.FalconFlashAttention2"),
        (Layout({"qkv_proj": "four_parts"}, "out_proj"), "codegen.CodeGenAttention"),
        (Layout({"Wqkv": "blocks"}, "out_proj"), "mpt.MptAttention"),
        (Layout({"c_attn": "blocks"}, "c_proj"), "openai.Attention imagegpt.ImageGPTAttention"),
        (Layout({"att_proj": "blocks"}, "out_proj"), "bark.BarkSelfAttention"),
        (
            Layout({"qkv": "blocks"}, "proj"),
            "sam.SamVisionAttention sam_hq.SamHQVisionAttention seggpt.SegGptAttention vitdet.VitDetAttention "
            "slanext.SLANeXtVisionAttention got_ocr2.GotOcr2VisionAttention mgp_str.MgpstrAttention "
            "pp_formulanet.PPFormulaNetVisionAttention deepseek_ocr2.DeepseekOcr2SamVisionAttention "
            "unlimited_ocr.UnlimitedOcrSamVisionAttention sam.SamVisionSdpaAttention sam_hq.SamHQVisionSdpaAttention "
            "deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention",
        ),
        (Layout({"qkv": "blocks"}, "projection"), "blip.BlipAttention"),
        (Layout({"qkv": "blocks"}, ""), "timesformer.TimesformerSelfAttention"),
        (
            _separate("q_proj", "k_proj", "v_proj", "out_proj"),
            "gptj.GPTJAttention gpt_neo.GPTNeoSelfAttention xglm.XGLMAttention "
            "dab_detr.DetrAttention groupvit.GroupViTAttention led.LEDDecoderAttention mvp.MvpAttention "
            "mask2former.Mask2FormerAttention oneformer.OneFormerAttention speecht5.SpeechT5Attention "
            "table_transformer.TableTransformerAttention trocr.TrOCRAttention fsmt.Attention",
        ),
        (_separate("query_proj", "key_proj", "value_proj", "out_proj"), "prophetnet.ProphetNetAttention"),
        (
            # Relative positions go through the same projections.
            replace(_separate("query_proj", "key_proj", "value_proj", ""), reuses_projections=True),
            "deberta_v2.DisentangledSelfAttention sew_d.DisentangledSelfAttention",
        ),
        (_separate("q_proj", "k_proj", "v_proj", "post"), "gemma4.Gemma4AudioAttention"),
        (_separate("q_proj", "k_proj", "v_proj", ""), "gemma3n.Gemma3nAudioAttention"),
        (_separate("q_lin", "k_lin", "v_lin", "out_lin"), "xlm.MultiHeadAttention flaubert.MultiHeadAttention"),
        (_separate("q", "k", "v", "o"), "mpnet.MPNetSelfAttention longt5.LongT5LocalAttention"),
        (_separate("project_q", "project_k", "project_v", "attention_out"), "cpmant.CpmAntAttention"),
        (_separate("query", "key", "value", "dense"), "tvp.TvpAttention"),
        (
            _separate("linear_q", "linear_k", "linear_v", "linear_out"),
            "fastspeech2_conformer.FastSpeech2ConformerAttention",
        ),
        (
            _separate("query", "key", "value", "out_proj"),
            "grounding_dino.GroundingDinoMultiheadAttention mm_grounding_dino.MMGroundingDinoMultiheadAttention "
            "omdet_turbo.OmDetTurboMultiheadAttention",
        ),
        (
            _separate("query", "key", "value", ""),
            "rembert.RemBertSelfAttention megatron_bert.MegatronBertSelfAttention canine.CanineSelfAttention "
            "flava.FlavaSelfAttention git.GitSelfAttention lxmert.LxmertAttention tapas.TapasSelfAttention "
            "roformer.RoFormerSelfAttention visual_bert.VisualBertSelfAttention bros.BrosSelfAttention "
            "layoutlmv3.LayoutLMv3SelfAttention blip_text.BlipTextSelfAttention blip.BlipTextSelfAttention "
            "data2vec.Data2VecVisionSelfAttention "
            "data2vec.Data2VecVisionSdpaSelfAttention mobilevit.MobileViTSelfAttention clap.ClapAudioSelfAttention "
            "donut.DonutSwinSelfAttention maskformer.MaskFormerSwinSelfAttention swin2sr.Swin2SRSelfAttention "
            "swinv2.Swinv2SelfAttention big_bird.BigBirdSelfAttention bigbird_pegasus.BigBirdPegasusSelfAttention "
            "zoedepth.ZoeDepthMultiheadAttention layoutlmv2.LayoutLMv2SelfAttention vilt.ViltSelfAttention",
        ),
    )
)

#: exsel's own layers, which have the mechanisms in their code: something else may be inserted there.
OWN: Mapping[str, Layout] = {"exsel.ExselAttention": _separate("q_proj", "k_proj", "v_proj")}

_LATENT = "latent attention: what it caches are not the values that it mixes"
_LINEAR = "linear attention: it has no softmax, and no values of its own kind"
_REDUCED = "its keys and values are a reduced sequence: its tokens have no own values"
_SPARSE = "sparse attention with code of its own for parts of the sequence"

#: Children whose presence means another mathematics, and the reason for refusing.
REFUSED_CHILDREN: Mapping[str, str] = {
    "kv_b_proj": _LATENT,
    "kv_a_proj_with_mqa": _LATENT,
}

#: Attributes that, when true, mean the same.
REFUSED_FLAGS: Mapping[str, str] = {
    "is_kv_shared_layer": "this layer attends with another layer's keys and values: it has none of its own",
    "rotary_value": "it rotates values too",
    "reorder_and_upcast_attn": "reorder_and_upcast_attn goes around the attention function: switch it off",
}

#: By class, with the reason.
REFUSED_CLASSES: Mapping[str, str] = {
    name: reason
    for reason, names in (
        ("differential attention: its output is a difference of two attentions", "diffllama.DiffLlamaAttention"),
        (
            "its keys and values are repeated over experts in an order of their own",
            "jetmoe.JetMoeAttention",
        ),
        (
            _LINEAR,
            "minimax.MiniMaxLightningAttention olmo_hybrid.OlmoHybridLinearAttentionDecoderLayer "
            "glm5_next.Glm5NextTextLinearAttention bailing_hybrid.BailingHybridDeltaAttention "
            "kimi_linear.KimiLinearDeltaAttention mobilevitv2.MobileViTV2LinearSelfAttention "
            "rwkv.RwkvSelfAttention swiftformer.SwiftFormerEfficientAdditiveAttention",
        ),
        (
            _REDUCED,
            "pvt.PvtEfficientSelfAttention pvt_v2.PvtV2SelfAttention glpn.GLPNEfficientSelfAttention "
            "segformer.SegformerAttention hiera.HieraMaskUnitAttention",
        ),
        (
            _SPARSE,
            "big_bird.BigBirdBlockSparseAttention bigbird_pegasus.BigBirdPegasusBlockSparseAttention "
            "longformer.LongformerSelfAttention led.LEDEncoderSelfAttention reformer.LSHSelfAttention "
            "reformer.LocalSelfAttention pegasus_x.PegasusXGlobalLocalAttention informer.InformerProbSparseAttention",
        ),
        (
            "its attention matrix is an approximation in code of its own",
            "mra.MraSelfAttention nystromformer.NystromformerSelfAttention yoso.YosoSelfAttention",
        ),
        ("its queries are pooled: they are not its values' tokens", "funnel.FunnelRelMultiheadAttention"),
        ("its values are convolved: they are not single tokens' own", "cvt.CvtSelfAttention"),
        ("it mixes attention with convolutions", "convbert.ConvBertSelfAttention fun_asr_nano.FunAsrNanoAttention"),
        ("it attends by autocorrelation of whole sequences", "autoformer.AutoformerAttention"),
        ("it adds a bias to values after their projection", "deberta.DisentangledSelfAttention"),
        ("two streams share their attention", "lilt.LiltSelfAttention luke.LukeSelfAttention"),
        ("its projections are quantised in code of its own", "ibert.IBertSelfAttention"),
        ("its projections are convolutions over channels first", "squeezebert.SqueezeBertSelfAttention"),
        ("it hands its weights, not its values, to PyTorch's attention", "wavlm.WavLMAttention"),
        (_LATENT, "deepseek_v4.DeepseekV4Attention"),
        ("it rotates values too", "clvp.ClvpSelfAttention"),
        ("it adds relative positions to what it mixes", "vits.VitsAttention"),
        ("it is exclusive already, by its own code", "neomme.NeoMMEAttention"),
        (
            "it attends to its own and the encoder's tokens at once",
            "t5gemma2.T5Gemma2MergedAttention diffusion_gemma.DiffusionGemmaDecoderTextAttention",
        ),
        (
            "it attends to its own and to other tokens with the same weights",
            "superglue.SuperGlueSelfAttention perceiver.PerceiverSelfAttention",
        ),
        ("its weights are no linear layers", "xlnet.XLNetRelativeAttention"),
        (
            "its projections are convolutions",
            "janus.JanusVQVAEAttnBlock chameleon.ChameleonVQVAEEncoderAttnBlock levit.LevitAttention "
            "emu3.Emu3VQVAEAttentionBlock",
        ),
        ("its queries, keys and values are made outside it", "dab_detr.DabDetrAttention"),
        ("several streams of tokens share their keys and values", "prophetnet.ProphetNetNgramSelfAttention"),
    )
    for name in names.split()
} | architectures_vision.REFUSED

#: By class: what has attention in its name and is not attention among tokens with values of their own.
LEFT_ALONE: Mapping[str, str] = {
    name: reason
    for reason, names in (
        (
            "deformable attention samples points: it has no own values",
            "deformable_detr.DeformableDetrMultiscaleDeformableAttention d_fine.DFineMultiscaleDeformableAttention "
            "deimv2.Deimv2MultiscaleDeformableAttention rt_detr.RTDetrMultiscaleDeformableAttention "
            "grounding_dino.GroundingDinoMultiscaleDeformableAttention lw_detr.LwDetrMultiscaleDeformableAttention "
            "mm_grounding_dino.MMGroundingDinoMultiscaleDeformableAttention "
            "mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention "
            "oneformer.OneFormerPixelDecoderEncoderMultiscaleDeformableAttention "
            "omdet_turbo.OmDetTurboMultiscaleDeformableAttention rf_detr.RfDetrMultiscaleDeformableAttention "
            "pp_doclayout_v2.PPDocLayoutV2MultiscaleDeformableAttention "
            "pp_doclayout_v3.PPDocLayoutV3MultiscaleDeformableAttention "
            "pp_doclayout_v4.PPDocLayoutV4MultiscaleDeformableAttention "
            "rt_detr_v2.RTDetrV2MultiscaleDeformableAttention",
        ),
        (
            "it draws a map of attention and mixes nothing",
            "detr.DetrMHAttentionMap conditional_detr.ConditionalDetrMHAttentionMap dab_detr.DabDetrMHAttentionMap "
            "maskformer.MaskFormerDetrMHAttentionMap",
        ),
        (
            "it attends to other tokens than its own",
            "grounding_dino.GroundingDinoBiMultiHeadAttention mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention "
            "groupvit.GroupViTAssignAttention evolla.EvollaSequenceCompressorAttention "
            "oneformer.OneFormerTextMapperAttention esmfold2.EsmFold2RowAttentionPooling",
        ),
        (
            "it is no attention over tokens",
            "slanet.SLANetAttentionGRUCell slanext.SLANeXtAttentionGRUCell patchtsmixer.PatchTSMixerGatedAttention "
            "inkling2.Inkling2BlockAttentionResidual phi4_multimodal.Phi4MultimodalAudioRelativeAttentionBias "
            "lxmert.LxmertAttentionOutput neomme.NeoMMEExclusiveSelfAttention cvt.CvtSelfAttentionConvProjection "
            "cvt.CvtSelfAttentionProjection cvt.CvtSelfAttentionLinearProjection "
            "florence2.Florence2VisionChannelAttention",
        ),
    )
    for name in names.split()
}

#: By class, why it can be exclusive but not selective.
REFUSED_SELECTIVE: Mapping[str, str] = {
    "swinv2.Swinv2SelfAttention": "its scores are cosines, in which a query's temperature cancels",
    "swin2sr.Swin2SRSelfAttention": "its scores are cosines, in which a query's temperature cancels",
    "fsmt.Attention": "its tokens come before the batch, so that their positions are not known",
}

#: Names of head sizes and of numbers of heads in attention modules.
HEAD_DIMS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head", "d_head")
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads")
