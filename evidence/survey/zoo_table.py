"""What the zoo's general rules do not know about single model types."""

from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]

_NO_GROUPS = {"num_key_value_heads": 4}
_HEAD = {"head_dim": 16}
_MROPE = {"rope_parameters": {"mrope_section": [2, 3, 3]}}
_ZAMBA = {
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "num_hidden_layers": 4,
    "attention_hidden_size": 128,
    "attention_head_dim": 32,
}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_NO_TIMM = {"__init__": {"use_timm_backbone": False, "backbone_config": _RESNET}}
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3], "num_time_features": 1}
_SAM2 = {"backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
_SWIN = {"embed_dim": 16, "depths": [2, 2, 1, 1], "num_heads": [2, 2, 4, 4], "window_size": 3, "image_size": 96}
_HALF_MROPE = {"rope_parameters": {"mrope_section": [1, 1, 2]}}


def _music(decoder: str) -> dict[str, Any]:
    parts = {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": decoder}
    return {"__init__": {name: {"model_type": part} for name, part in parts.items()}}


# Fields of a type's small configuration, wherever that type is a part of others too; a dict for a sub-configuration's
# name goes into that sub-configuration. "__init__" is given to the default configuration already.
OVERRIDES: dict[str, dict[str, Any]] = {
    # text
    "apertus1p5": {
        "vision_config": {"codebook_size": 16},
        "audio_config": {"codebook_size": 16},
        "image_token_offset": 110,
        "audio_token_offset": 126,
    },
    "audio-spectrogram-transformer": {"max_length": 40},
    # Windows that need no padding, whose tokens would be others than the layer's own.
    # As DeBERTa-v3 is: relative positions through the layers' own projections.
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
    "florence2": {"vision_config": {"window_size": 3, "patch_stride": [4, 2, 2, 1]}},
    "granite_speech5_encoder": _NO_GROUPS,
    # As many values as queries, whatever the configuration says of its keys.
    "nemotron3_diarization": {"audio_config": _NO_GROUPS},
    "nemotron3_diarization_audio": _NO_GROUPS,
    "nemotron3_5_transcribe_asr_audio": _NO_GROUPS,
    "nemotron3_5_transcribe_audio": {"asr_config": _NO_GROUPS, "diarization_config": {"audio_config": _NO_GROUPS}},
    "nemotron3_5_transcribe_word_timestamp": _NO_GROUPS,
    "lilt": {"hidden_size": 96},
    "bailing_hybrid": {"num_local_experts": 4, "n_group": 1, "topk_group": 1, "layer_group_size": 2},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 32, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    # Two of its layers run twice.
    "dory": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": _NO_GROUPS,
    "esm": {"vocab_size": 160, "pad_token_id": 1, "mask_token_id": 101},
    "esmc": {"vocab_size": 160, **_NO_GROUPS},
    "glm5_next_text": _NO_GROUPS,
    "glm4v_moe_text": _HALF_MROPE,
    "glm4v_text": _MROPE,
    "glm_image_text": _MROPE,
    "glm_ocr_text": _MROPE,
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 32, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters": {"mrope_section": [2, 2, 2, 2]}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2, "head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral": _HEAD,
    "mobilebert": {"hidden_size": 64, "intra_bottleneck_size": 64, "true_hidden_size": 64},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl_text": _MROPE,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [4, 8],
        "attn_layers": ["local", "lsh"],
        "num_buckets": 2,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "t5gemma2_text": {"dropout_rate": 0.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "n_mamba_heads": 8},
    # images and text
    "aria": {"projector_patch_to_query_dict": {36: 5}},
    "blip-2": {"image_token_index": 150},
    "chameleon": {"vocabulary_map": {"<image>": 150, "IMGIMGAZ": 151}},
    "cohere_compass_text": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        }
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64},
    "dots3_note_vision_encoder": {"adapter_in_dim": 64, "adapter_out_dim": 64, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 150, "<image>": 151, "<|visual token 000001|>": 152}},
    "ernie4_5_vl_moe_text": {"rope_parameters": {"mrope_section": [3, 3, 2]}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3": {"mm_tokens_per_image": 9},
    "instructblip": {"image_token_index": 150},
    "instructblipvideo": {"video_token_index": 150},
    "kosmos-2": {"latent_query_num": 5},
    "kosmos-2.5": {"latent_query_num": 5},
    "llama4_vision_model": {
        "intermediate_size": 256,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "llava_next": {"image_grid_pinpoints": [[48, 48]]},
    "llava_next_video": {"image_grid_pinpoints": [[48, 48]]},
    "llava_onevision": {"image_grid_pinpoints": [[48, 48]]},
    "molmo2_adapter": {"vision_feature_layer": [0, 1], "text_hidden_size": 64},
    "muse_spark_audio": {"num_hidden_layers": 4, "out_hidden_size": 64},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 120, "audio_start_token_id": 121},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 120, "audio_start_token_id": 121},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 64},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "shieldgemma2": {"mm_tokens_per_image": 9, "yes_token_index": 20, "no_token_index": 21},
    "step3p7_text": {"sliding_window": 4},
    "t5gemma2_encoder": {"mm_tokens_per_image": 9},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "paddleocr_vl_text": _MROPE,
    "qwen2_5_omni_text": _MROPE,
    "step3p7": {"text_config": {"sliding_window": 4}},
    "pix2struct_vision_model": {"patch_embed_hidden_size": 192},
    # vision
    "bit": {"num_groups": 4},
    "conditional_detr": _NO_TIMM,
    "dab-detr": _NO_TIMM,
    "deformable_detr": _NO_TIMM,
    "detr": _NO_TIMM,
    "donut-swin": _SWIN,
    "table-transformer": _NO_TIMM,
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10, "hidden_size": 64},
    "lw_detr_vit": {"num_windows": 4, "image_size": 48},
    "rf_detr_dinov2": {"num_windows": 2},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2]},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "maskformer-swin": _SWIN,
    "timesfm": {"head_dim": 16},
    # audio
    # time series
    "autoformer": {**_SERIES, "label_length": 2, "moving_average": 3},
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "align": {"projection_dim": 128},
    "chmv2": {"backbone_config": {"return_class_token": True}},
    "clap_audio_model": {"patch_embeds_hidden_size": 8},
    "clvp_encoder": {"hidden_size": 128},
    "clvp_decoder": {"hidden_size": 128},
    "efficientnet": {"hidden_dim": 2560},
    "gemma4_audio": {"subsampling_conv_channels": [128, 32]},
    "granite_docling_vision": {"image_size": 64},
    "kosmos_2_5_vision_model": {"patch_embed_hidden_size": 192},
    "levit": {"patch_size": 16},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "qwen3_omni_moe": {"talker_config": {"spatial_merge_size": 2}},
    "sam2_hiera_det_model": {
        "hidden_size": 8,
        "image_size": [64, 64],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 2, 4],
        "blocks_per_stage": [1, 2, 2, 1],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
    },
    "seggpt": {"image_size": [96, 48], "pretrain_image_size": 48},
    "superpoint": {"descriptor_decoder_dim": 64},
    "videomae": {"num_frames": 8},
    "vitmatte": {
        "backbone_config": {"patch_size": 16},
        "convstream_hidden_sizes": [16, 16, 16],
        "fusion_hidden_sizes": [64, 32, 16, 8],
    },
    "vivit": {"num_frames": 8},
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": [], "downsample_rate": "1/2"},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "minicpm_ocr": {"image_token_id": 150},
    "minicpmv4_6": {"image_token_id": 150, "vision_config": {"image_size": 64}},
    "minicpmv4_7": {"image_token_id": 150, "vision_config": {"image_size": 64}},
    "mistral4": {"rope_parameters": {"partial_rotary_factor": 1.0}},
    "neucodec": {"quantization_dim": 128, **_NO_GROUPS},
    "perceiver": {"d_latents": 64, "num_self_attends_per_block": 2},
    "pp_doclayout_v3": {"x4_feat_dim": 64, "mask_feature_channels": [64, 64]},
    "sam3_tracker": {"vision_config": {"backbone_feature_sizes": [[24, 24], [12, 12], [6, 6]]}},
    "vits": {"noise_scale": 0.0, "noise_scale_duration": 0.0},
    "voxtral": {"audio_token_id": 150},
    "xcodec": {"codebook_dim": 128},
    "xcodec2": {"quantization_dim": 128, **_NO_GROUPS},
    "yolos": {"num_detection_tokens": 10},
    "zoedepth": {"bottleneck_features": 64},
    "glmasr_encoder": {"intermediate_size": 256},
    "hiera": {"image_size": [64, 64]},
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192},
    "modernvbert": {"vision_config": {"image_size": 64}},
    "sam_vision_model": {"global_attn_indexes": [1]},
    "ultravbert": {"vision_config": {"image_size": 64}},
    "voxtral_encoder": {"intermediate_size": 256},
    "cvt": {"depth": [2, 2, 3]},
    "sam2_vision_model": _SAM2,
    "sam2": {"vision_config": _SAM2, "prompt_encoder_config": {"image_size": 64, "patch_size": 16}},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 64}},
    "musicgen": _music("musicgen_decoder"),
    "musicgen_melody": _music("musicgen_melody_decoder"),
    "pocket_tts": {"flow_head_config": {"condition_dim": 64}},
    "lightglue": {"keypoint_detector_config": {"descriptor_decoder_dim": 64}},
}

# Types without a default configuration, made of other types' small ones.
COMPOSITES: dict[str, dict[str, str]] = {
    "encoder-decoder": {"encoder": "bert", "decoder": "bert"},
    "nougat": {"encoder": "donut-swin", "decoder": "mbart"},
    "speech-encoder-decoder": {"encoder": "wav2vec2", "decoder": "bert"},
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "gpt2"},
    "vision-text-dual-encoder": {"vision_config": "vit", "text_config": "bert"},
}

# Types that are not worth an attempt, and why.
_SESSION = "runs on a video session, not on a batch"
_TIMM = "its default vision tower is a timm model, of a size of its own or downloaded"
_ASSISTANT = "an assistant: reads the states of the model that it assists"
REFUSED: dict[str, str] = {
    "bark": "has no forward of its own: its parts are bark's semantic, coarse and fine models",
    "edgetam": _TIMM,
    "edgetam_video": _SESSION,
    "edgetam_vision_model": _TIMM,
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "gemma3n_vision": _TIMM,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "glm_image_vqmodel": "has no forward of its own",
    "muse_glimmer_assistant": _ASSISTANT,
    "pe_audio_video": _TIMM,
    "pe_audio_video_encoder": _TIMM,
    "pe_video": _TIMM,
    "pe_video_encoder": _TIMM,
    "perception_lm": _TIMM,
    "qwen2_5_omni": "has no forward of its own: its parts are the thinker and the talker",
    "qwen3_omni_moe": "has no forward of its own: its parts are the thinker and the talker",
    "rag": "has no forward without a retriever and its index",
    "sam2_video": _SESSION,
    "sam3_tracker_video": _SESSION,
    "sam3_video": _SESSION,
    "timm_backbone": "a timm model, not one of transformers' own",
    "timm_wrapper": "a timm model, not one of transformers' own",
}
