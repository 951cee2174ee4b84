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
}
