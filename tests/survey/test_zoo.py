"""The zoo of small models: what is built is small, deterministic and runs; what is not says why."""

import pytest
import torch

from evidence.survey.zoo import NotBuilt, build_small_model, model_types
from evidence.survey.zoo_table import OVERRIDES

FAMILIES = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder", "vit": "vision", "wav2vec2": "audio"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_builds_one_of_each_family(model_type: str) -> None:
    specimen = build_small_model(model_type)
    assert specimen.family == FAMILIES[model_type]
    assert specimen.can_generate == (model_type in ("llama", "t5"))
    assert not specimen.model.training
    parameters = list(specimen.model.parameters())
    assert {(p.dtype, p.device.type) for p in parameters} == {(torch.float32, "cpu")}
    assert sum(p.numel() for p in parameters) < 5_000_000
    with torch.no_grad():
        output = specimen.model(**specimen.inputs)[0]
    assert torch.isfinite(output).all()
    assert not torch.allclose(output[0], output[1])  # two different rows


def test_same_seed_same_specimen_other_seed_another() -> None:
    state = torch.random.get_rng_state()
    first, again, other = build_small_model("qwen3"), build_small_model("qwen3"), build_small_model("qwen3", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert not torch.equal(first.inputs["input_ids"], other.inputs["input_ids"])
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


def test_heads_are_grouped_and_sizes_distinct() -> None:
    specimen = build_small_model("llama")
    config = specimen.model.config
    sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.num_hidden_layers)
    assert sizes == (4, 2, 16, 2)
    assert specimen.inputs["input_ids"].shape == (2, 7)


def test_nothing_hides_behind_ones_and_zeros() -> None:
    model = build_small_model("gpt2").model
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0.05, name


def test_one_layer_of_each_kind_is_kept() -> None:
    kinds = build_small_model("gemma3_text").model.config.layer_types
    assert set(kinds) == {"sliding_attention", "full_attention"}


def test_part_of_another_type_is_refused_with_its_owner() -> None:
    with pytest.raises(NotBuilt, match=r"not a model of its own: part of .*siglip"):
        build_small_model("siglip_text_model")


def test_unknown_type_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="no model type 'lama'"):
        build_small_model("lama")


def test_types_are_sorted_and_complete() -> None:
    types = model_types()
    assert types == sorted(types)
    assert {"llama", "bert", "gemma3_text", "siglip_text_model"} <= set(types)


def test_images_take_as_many_tokens_as_the_model_makes_of_them() -> None:
    specimen = build_small_model("qwen2_vl")
    assert specimen.family == "multimodal"
    placeholders = specimen.inputs["input_ids"] == specimen.model.config.image_token_id
    assert placeholders.sum(dim=1).tolist() == [6, 6]  # 4 × 6 patches, merged 2 × 2


@pytest.mark.parametrize(("model_type", "reason"), [("timm_wrapper", "a timm model"), ("sam2_video", "video session")])
def test_what_cannot_run_here_is_refused_by_name(model_type: str, reason: str) -> None:
    with pytest.raises(NotBuilt, match=reason):
        build_small_model(model_type)


def test_what_transformers_says_becomes_the_reason_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OVERRIDES, "gpt2", {"n_head": 3})
    with pytest.raises(NotBuilt, match="divisible") as caught:
        build_small_model("gpt2")
    assert "\n" not in str(caught.value)


def test_a_type_with_another_types_model_class_is_built() -> None:
    assert type(build_small_model("internlm3").model).__name__ == "LlamaForCausalLM"
