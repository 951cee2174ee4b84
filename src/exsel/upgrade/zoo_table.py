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
_HALF_MROPE = {"rope_parameters": {"mrope_section": [1, 1, 2]}}

# Fields of a type's small configuration, wherever that type is a part of others too; a dict for a sub-configuration's
# name goes into that sub-configuration. "__init__" is given to the default configuration already.
OVERRIDES: dict[str, dict[str, Any]] = {
    # text
    "audio-spectrogram-transformer": {"max_length": 40},
    "granite_speech5_encoder": _NO_GROUPS,
    "lilt": {"hidden_size": 96},
    "bailing_hybrid": {"num_local_experts": 4, "n_group": 1, "topk_group": 1, "layer_group_size": 2},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 32, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
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
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
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
REFUSED: dict[str, str] = {}

_IMAGE_SIZES = ("tensor", [[48, 48], [48, 48]])

# Inputs that the general rules get wrong, by type: name → (kind, *shape), or None to leave the input out. Kinds: see
# exsel.upgrade.zoo_inputs.
INPUTS: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "bros": {"input_ids": ("tokens", 2, 7), "bbox": ("normal", 2, 7, 8)},
    "dia": {"input_ids": ("tokens", 2, 7), "decoder_input_ids": ("tokens", 2, 5, 9)},
    "lilt": {"input_ids": ("tokens", 2, 7), "bbox": ("boxes", 2, 7)},
    "udop": {"input_ids": ("tokens", 2, 7), "bbox": ("unit_boxes", 2, 7)},
    "lxmert": {
        "input_ids": ("tokens", 2, 7),
        "visual_feats": ("normal", 2, 5, 2048),
        "visual_pos": ("normal", 2, 5, 4),
    },
    "canary": {"input_features": ("frames",)},
    "cohere_asr": {"input_features": ("frames",)},
    "parakeet_ctc": {"input_features": ("frames",)},
    "parakeet_encoder": {"input_features": ("frames",)},
    "parakeet_rnnt": {"input_features": ("frames",)},
    "parakeet_tdt": {"input_features": ("frames",)},
    "nemotron3_5_asr": {"input_features": ("frames",)},
    "nemotron3_5_transcribe_asr_audio": {"input_features": ("frames",)},
    "nemotron3_5_transcribe_audio": {"input_features": ("frames",)},
    "nemotron3_diarization": {"input_features": ("frames",)},
    "nemotron3_diarization_audio": {"input_features": ("frames",)},
    "nemotron_asr_streaming": {"input_features": ("frames",)},
    "nemotron_asr_streaming_encoder": {"input_features": ("frames",)},
    "lasr_ctc": {"input_features": ("frames",)},
    "lasr_encoder": {"input_features": ("frames",)},
    "granite_speech5_ctc": {"input_features": ("normal", 2, 40, 320)},
    "granite_speech5_encoder": {"input_features": ("normal", 2, 40, 320)},
    "wav2vec2-bert": {"input_features": ("normal", 2, 40, 160)},
    "speech_to_text": {"input_features": ("frames",)},
    "gemma4_audio": {"input_features": ("normal", 2, 40, 128), "attention_mask": ("true", 2, 40)},
    "audio-spectrogram-transformer": {"input_values": ("normal", 2, 40, 128)},
    "musicgen": {"input_ids": ("tokens", 2, 7), "decoder_input_ids": ("tokens", 8, 5)},
    "musicgen_melody": {"input_ids": ("tokens", 2, 7), "decoder_input_ids": ("tokens", 8, 5)},
    # images and text
    "blip": {"input_ids": ("tokens", 2, 7)},
    "blip-2": {"input_ids": ("around", 150, 5)},
    "chameleon": {"pixel_values": None},
    "emu3": {"pixel_values": None},
    "gemma4": {"pixel_values": None},
    "gemma4_unified": {"pixel_values": None},
    "granite_docling": {"pixel_values": ("normal", 2, 1, 3, 48, 48), "pixel_attention_mask": ("true", 2, 1)},
    "idefics": {"pixel_values": ("normal", 2, 1, 3, 48, 48), "image_attention_mask": ("ones", 2, 7, 1)},
    "idefics2": {"pixel_values": ("normal", 2, 1, 3, 48, 48)},
    "idefics3": {"pixel_values": ("normal", 2, 1, 3, 48, 48)},
    "smolvlm": {"pixel_values": ("normal", 2, 1, 3, 48, 48)},
    "instructblip": {"input_ids": ("around", 150, 5), "qformer_input_ids": ("tokens", 2, 5)},
    "instructblipvideo": {
        "pixel_values": ("normal", 2, 2, 3, 48, 48),
        "input_ids": ("around", 150, 10),
        "qformer_input_ids": ("tokens", 2, 5),
    },
    "kimi_k25": {"pixel_values": ("normal", 48, 3, 8, 8)},
    "kosmos-2": {"input_ids": ("tokens", 2, 12), "image_embeds_position_mask": ("span", 12, 5)},
    "kosmos-2.5": {
        "input_ids": ("tokens", 2, 12),
        "flattened_patches": ("patches", 9, 3 * 64),
        "image_embeds_position_mask": ("span", 12, 5),
    },
    "lfm2_vl": {
        "pixel_values": ("normal", 2, 36, 192),
        "spatial_shapes": ("tensor", [[6, 6], [6, 6]]),
        "pixel_attention_mask": ("ones", 2, 36),
    },
    "lighton_ocr": {"image_sizes": _IMAGE_SIZES},
    "llava_next": {"pixel_values": ("normal", 2, 2, 3, 48, 48), "image_sizes": _IMAGE_SIZES},
    "llava_next_video": {"pixel_values": ("normal", 2, 2, 3, 48, 48), "image_sizes": _IMAGE_SIZES},
    "llava_onevision": {"pixel_values": ("normal", 2, 2, 3, 48, 48), "image_sizes": _IMAGE_SIZES},
    "mistral3": {"image_sizes": _IMAGE_SIZES},
    "mistral4": {"image_sizes": _IMAGE_SIZES},
    "mistral_large4": {"image_sizes": _IMAGE_SIZES},
    "paddleocr_vl": {"pixel_values": ("normal", 48, 3, 8, 8)},
    "paddleocr_vl_vision": {"pixel_values": ("normal", 48, 3, 8, 8)},
    "pix2struct": {"flattened_patches": ("patches", 9, 768), "attention_mask": ("ones", 2, 9)},
    "siglip2": {
        "pixel_values": ("normal", 2, 36, 192),
        "pixel_attention_mask": ("ones", 2, 36),
        "spatial_shapes": ("tensor", [[6, 6], [6, 6]]),
    },
    "siglip2_vision_model": {
        "pixel_values": ("normal", 2, 36, 192),
        "pixel_attention_mask": ("ones", 2, 36),
        "spatial_shapes": ("tensor", [[6, 6], [6, 6]]),
    },
    "t5gemma2_encoder": {"pixel_values": None},
    "video_llama_3": {"image_merge_sizes": ("tensor", [2, 2])},
    "video_llama_3_vision": {"merge_sizes": ("tensor", [2, 2])},
    "voxtral_realtime": {"pixel_values": None},
}
